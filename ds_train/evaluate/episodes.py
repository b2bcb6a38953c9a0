"""A model measured on episodes: every held-out example asked after 0, k, ... demonstrations.

The demonstrations are of the query's own task and part of the data; they are the same in every run,
whatever its seed, and `loss` and the shares of right tokens count the query's answer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ds_train.config.run import RunConfig
from ds_train.data.divide import PreparedData
from ds_train.data.store import TokenStore
from ds_train.evaluate.samples import Scores, by_source, score_samples, summarise
from ds_train.fewshot.build import evaluation_episodes
from ds_train.model.head import LanguageModel

Say = Callable[[str], Any]


def score_shots(
    model: LanguageModel,
    config: RunConfig,
    data: PreparedData,
    store: TokenStore,
    *,
    batch_size: int,
    pad_token_id: int,
    max_samples: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Number of demonstrations (as text) -> the numbers of `summarise`, with `sources`.

    Args:
        max_samples: of the first so many queries only; demonstrations are drawn from all of them.

    Raises:
        DataError: a task has too few examples for so many demonstrations.
    """
    results: dict[str, dict[str, Any]] = {}
    for shots, episodes in evaluation_episodes(config, data, store).items():
        scores = score_samples(
            model,
            store,
            batch_size=batch_size,
            max_length=config.data.max_length,
            pad_token_id=pad_token_id,
            rows=episodes.rows[:max_samples],
        )
        queries = episodes.queries[:max_samples]
        asked = replace(
            store.select(queries),
            lengths=episodes.lengths[:max_samples].astype(np.int32),
            supervised=episodes.supervised[:max_samples].astype(np.int32),
        )
        own = Scores(scores.loss_sum[queries], scores.num_correct[queries])
        numbers = summarise(asked, own)
        numbers["demonstrations"] = int(episodes.num_shown[:max_samples].sum())
        results[str(shots)] = numbers | {"sources": by_source(asked, own, data.source_names)}
    return results


def shots_title(shots: str, numbers: dict[str, Any]) -> str:
    """What stands over a table: `4-shot`, and how many demonstrations did not fit."""
    missing = int(shots) * numbers["num_samples"] - numbers["demonstrations"]
    left_out = f" ({missing:,} demonstrations did not fit into data.max_length)" if missing else ""
    return f"{shots}-shot{left_out}"


def tables(result: dict[str, Any], format_table: Callable[[dict[str, Any]], str]) -> Sequence[str]:
    """A table for each number of demonstrations."""
    return [
        format_table(
            {**result, **numbers, "split": f"{result['split']}, {shots_title(shots, numbers)}"}
        )
        for shots, numbers in result["shots"].items()
    ]
