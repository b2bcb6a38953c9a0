"""Rows of candidate answers: what `fewshot.losses` trains on.

A row is an example with its candidates: the right answer and wrong ones, in the template that is
drawn for the epoch. Which examples come when is decided by the plan below, which draws right
answers only; each of its rows is widened here. Where `max_negatives` is fewer than an example has,
those of an epoch are drawn by hash::

    drawn                 gold of example 7, template 1        sample 41
    its group             samples 40 41 42 43 44               words 5 . 2 9 3
    max_negatives: 2      row 41 42 44, in the order of the store

so a row depends on (seed, epoch, example) and on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ds_train.config.fewshot import LossesConfig
from ds_train.config.run import RunConfig
from ds_train.data.divide import PreparedData
from ds_train.data.epochs import BlockRows, Blocks, EpochBlocks, Totals, running_sum
from ds_train.data.mix import Ints, keyed_words
from ds_train.data.row_plan import RowPlan
from ds_train.data.store import TokenStore
from ds_train.errors import DataError


def scores_wrong_answers(config: LossesConfig) -> bool:
    """Whether wrong answers have a part in the loss; without one they need not be computed."""
    return config.unlikelihood > 0 or config.length_normalised > 0


class CandidateBlocks:
    """The blocks of another plan, each drawn example with its candidates."""

    def __init__(self, inner: Blocks, store: TokenStore, config: LossesConfig, seed: int) -> None:
        if store.examples is None:
            raise ValueError("the store does not know which samples are answers to one question")
        self._inner, self._store, self._examples = inner, store, store.examples
        self._config, self._seed = config, seed
        self.num_recent = inner.num_recent

    def plan(self, number: int, start: Totals) -> BlockRows:
        """Block `number`."""
        rows = self._inner.plan(number, start)
        if rows.starts is not None or len(rows.samples) != rows.num_rows:
            raise ValueError("rows of pieces, or of several examples, can't be widened")
        if not scores_wrong_answers(self._config):
            return rows
        samples, counts = self._widen(rows.samples, number)
        offsets = running_sum(counts)
        lengths = self._store.lengths[samples].astype(np.int64)
        return replace(
            rows,
            offsets=offsets,
            samples=samples,
            tokens_before=running_sum(lengths)[offsets],
            supervised_before=running_sum(self._store.supervised[samples])[offsets],
            tokens=lengths,
            num_samples_before=rows.samples_before,
        )

    def _widen(self, golds: Ints, number: int) -> tuple[Ints, Ints]:
        """(samples, how many of them each row has) of rows of one right answer each."""
        groups = self._examples.group[golds]
        counts = self._examples.num_choices()[groups]
        row = np.repeat(np.arange(len(golds)), counts)
        before = (np.cumsum(counts) - counts)[row]
        samples = self._examples.group_starts[groups][row] + np.arange(len(row)) - before
        most = self._config.max_negatives
        if most is None or (counts <= most + 1).all():
            return samples, counts
        words = keyed_words(self._store.num_samples, self._seed, "negatives", number)[samples]
        wrong = samples != golds[row]
        places = np.empty(len(row), dtype=np.int64)  # 0 is the right answer
        places[np.lexsort((words, wrong, row))] = np.arange(len(row)) - before
        kept = places <= most
        return samples[kept], np.minimum(counts, most + 1)

    def epoch(self, start: Totals, number: int, rows: BlockRows, index: int) -> float:
        """Passes over the data before a row."""
        return self._inner.epoch(start, number, rows, index)

    def target_samples(self, num_epochs: float) -> int | None:
        """Examples that make up so many epochs, as the plan below counts them."""
        return self._inner.target_samples(num_epochs)


def losses_section(config: RunConfig) -> LossesConfig | None:
    """The losses over candidate answers, where the recipe has them."""
    return None if config.fewshot is None else config.fewshot.losses


def build_candidate_plan(
    config: RunConfig,
    losses: LossesConfig,
    prepared: PreparedData,
    say: Callable[[str], object] = lambda text: None,
) -> RowPlan:
    """The endless stream of examples with their candidates.

    Args:
        say: is told what a micro-batch holds at most.

    Raises:
        DataError: there is nothing to choose from, or no data at all.
    """
    store, seed = prepared.train, config.train.seed
    examples = EpochBlocks(store, config.data, seed, prepared.source_weights)
    check_candidates(store)
    say(describe_losses(losses, store, config.train.per_device_train_batch_size))
    return RowPlan(CandidateBlocks(examples, store, losses, seed))


def check_candidates(store: TokenStore) -> None:
    """DataError where no example has answers to choose from."""
    if store.examples is None or not (store.examples.choice >= 0).any():
        raise DataError(
            "fewshot.losses: compares the right answer with wrong ones, and no source of "
            "data.train has any; use format: classification or multiple_choice, or remove it."
        )


def describe_losses(config: LossesConfig, store: TokenStore, micro_batch_size: int) -> str:
    """What is minimised, and the largest micro-batch: its lines are what takes memory."""
    names = ("language_modelling", "unlikelihood", "length_normalised")
    weights = ", ".join(f"{name} x {getattr(config, name):g}" for name in names)
    by_token = "; the first over the right answers' tokens" if config.lm_mean == "token" else ""
    most = most_candidates(config, store)
    return (
        f"losses: {weights} (means over the examples of a step{by_token}); up to {most:,} of "
        f"{_num_answers(store):,} answers of an example are scored, so that a micro-batch of "
        f"{micro_batch_size:,} is up to {most * micro_batch_size:,} lines of up to "
        f"{int(store.lengths.max()):,} tokens"
    )


def most_candidates(config: LossesConfig, store: TokenStore) -> int:
    """Candidates of the row that has most."""
    if not scores_wrong_answers(config):
        return 1
    most = _num_answers(store)
    return most if config.max_negatives is None else min(most, config.max_negatives + 1)


def _num_answers(store: TokenStore) -> int:
    """Of the example that has most."""
    assert store.examples is not None
    return int(store.examples.num_choices().max())


def num_gold_tokens(store: TokenStore, rows: list[Ints]) -> int:
    """Supervised tokens of the right answers of a step's rows."""
    assert store.examples is not None
    samples = np.concatenate([np.empty(0, dtype=np.int64), *rows])
    return int(store.supervised[samples[store.examples.gold[samples]]].sum(dtype=np.int64))
