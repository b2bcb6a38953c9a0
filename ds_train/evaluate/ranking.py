"""Rank classification of a store's labelled examples: every answer is scored, the likeliest wins.

The answers of an example stand in one row as a tree, so that their question is computed once; all
ranks share the work, and the numbers do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ds_train.data.store import TokenStore
from ds_train.evaluate.requests import Request
from ds_train.evaluate.scorer import RequestScorer
from ds_train.fewshot.ranking import Floats, Trials, check_rankable, rank_accuracies


def rank_examples(
    scorer: RequestScorer,
    store: TokenStore,
    names: Sequence[str] = (),
    *,
    part: str = "the held-out data",
    max_examples: int | None = None,
    progress: str | None = None,
) -> dict[str, Any]:
    """Shares of examples whose right answer is ranked first; a collective call.

    Args:
        names: of the sources, to have the shares of each one too.
        part: what the store is, for the message.
        max_examples: only the first so many that have answers to choose from.

    Returns:
        The numbers of `rank_accuracies`, `rank_examples` (how many were ranked), and with names
        `sources`: the same of each source that has something to rank.

    Raises:
        DataError: no example has answers to choose from.
    """
    check_rankable(store, part)
    trials, members = Trials.of(store), np.ones(store.num_samples, dtype=bool)
    assert trials is not None and store.examples is not None
    if max_examples is not None:
        members = store.examples.example <= np.unique(trials.example)[:max_examples][-1]
        trials = Trials.of(store, members)
        assert trials is not None
    scores = np.zeros(store.num_samples)
    requests = [_request(store, sample) for sample in trials.samples.tolist()]
    scores[trials.samples] = scorer.score(requests, progress).logprob
    result = _numbers(trials, scores)
    if not names:
        return result
    sources: dict[str, dict[str, Any]] = {}
    for index in np.unique(store.sources[trials.samples]).tolist():
        own = Trials.of(store, members & (store.sources == index))
        assert own is not None
        sources[names[index]] = _numbers(own, scores)
    return result | {"sources": sources}


def _numbers(trials: Trials, scores: Floats) -> dict[str, Any]:
    shares = rank_accuracies(trials, scores[trials.samples])
    return {**shares, "rank_examples": trials.num_examples}


def _request(store: TokenStore, sample: int) -> Request:
    """The answer of a sample, which is what it learns, after its question."""
    ids, mask = store.tokens(sample), store.mask(sample)
    start = int(np.argmax(mask))
    return Request(ids[:start].tolist(), ids[start:].tolist())


def add_ranks(result: dict[str, Any], ranked: dict[str, Any]) -> None:
    """Put the shares into the numbers of an evaluation, and into those of its sources."""
    for name, numbers in ranked["sources"].items():
        result["sources"].setdefault(name, {}).update(numbers)
    result.update({key: value for key, value in ranked.items() if key != "sources"})


def rank_table(ranked: dict[str, Any]) -> str:
    """The shares for people: a line for each source, and one for all of them."""
    names = ("tokens", "none", "chars", "bytes")
    head = ("rank accuracy by", *names, "chance", "examples")
    lines = [(name, one) for name, one in ranked["sources"].items()]
    if len(lines) != 1:
        lines.append(("all", ranked))
    rows = [head]
    for title, one in lines:
        shares = [f"{100 * one[f'rank_accuracy_{name}']:.2f} %" for name in names]
        rows.append(
            (title, *shares, f"{100 * one['rank_chance']:.2f} %", f"{one['rank_examples']:,}")
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    )
