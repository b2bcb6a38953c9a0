"""What every step trains on: a pure function of (recipe, data, step), the same on every rank.

`RowPlan` knows the rows of each epoch (mixed, shuffled, packed). Epochs follow one another in one
endless stream of rows, and step t of `StepPlan` takes rows [t x G, (t + 1) x G) of it, G being the
global batch size; only a run limited by epochs ends, with a last step that empty rows fill up.

Nothing moves on as steps are asked for: any step can be asked for at any time, in any order, from
several threads. What is kept is a memory of plans already made: two integers per epoch for good,
and the arrays of the two epochs used last (a step may reach across the border of two).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from ds_train.config.data import DataConfig
from ds_train.config.train import TrainConfig
from ds_train.data.mix import Ints, epoch_samples
from ds_train.data.pack import pack_rows, single_rows
from ds_train.data.store import TokenStore
from ds_train.errors import DataError
from ds_train.units import Duration


@dataclass(frozen=True)
class EpochRows:
    """Rows of one epoch: row r is samples[offsets[r]:offsets[r + 1]]."""

    offsets: Ints
    samples: Ints
    tokens_before: Ints
    """[num_rows + 1] tokens of the rows before each row of this epoch."""
    supervised_before: Ints
    """[num_rows + 1] supervised tokens of the rows before each row of this epoch."""

    @property
    def num_rows(self) -> int:
        """Rows of the epoch."""
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Totals:
    """Rows, tokens and supervised tokens of a stretch of the stream."""

    rows: int = 0
    tokens: int = 0
    supervised: int = 0


class RowPlan:
    """The endless stream of rows, epoch after epoch."""

    def __init__(
        self,
        store: TokenStore,
        data_config: DataConfig,
        seed: int,
        source_weights: Sequence[float],
    ) -> None:
        if len(store.lengths) == 0:
            raise DataError("data.train: no sample is left to train on; see the audit for why.")
        if store.sources.max() >= len(source_weights):
            raise ValueError(f"source {store.sources.max()} has no weight in {source_weights}")
        self._store = store
        self._config = data_config
        self._seed = seed
        self._weights = tuple(source_weights)
        self._recent: dict[int, EpochRows] = {}
        self._starts = [Totals()]  # before epoch 0, 1, ...: as far as anybody has asked
        self._lock = RLock()  # the prefetch thread and the training loop ask at the same time

    def num_rows(self, epoch: int) -> int:
        """Rows of one epoch."""
        return self.start(epoch + 1).rows - self.start(epoch).rows

    def row(self, epoch: int, index: int) -> Ints:
        """Sample ids of row `index` of `epoch`."""
        rows = self.epoch_rows(epoch)
        return rows.samples[rows.offsets[index] : rows.offsets[index + 1]]

    def start(self, epoch: int) -> Totals:
        """What the epochs before `epoch` hold together."""
        with self._lock:
            while len(self._starts) <= epoch:
                rows, last = self.epoch_rows(len(self._starts) - 1), self._starts[-1]
                self._starts.append(
                    Totals(
                        last.rows + rows.num_rows,
                        last.tokens + int(rows.tokens_before[-1]),
                        last.supervised + int(rows.supervised_before[-1]),
                    )
                )
            return self._starts[epoch]

    def locate(self, row: int) -> tuple[int, int]:
        """(epoch, index in the epoch) of a row of the stream."""
        with self._lock:
            while self._starts[-1].rows <= row:
                self.start(len(self._starts))
            epoch = bisect_right(self._starts, row, key=lambda start: start.rows) - 1
            return epoch, row - self._starts[epoch].rows

    def before(self, row: int) -> Totals:
        """Rows, tokens and supervised tokens before a row of the stream."""
        epoch, index = self.locate(row)
        start, rows = self.start(epoch), self.epoch_rows(epoch)
        tokens, supervised = rows.tokens_before[index], rows.supervised_before[index]
        return Totals(row, start.tokens + int(tokens), start.supervised + int(supervised))

    def rows_reaching(self, num_tokens: int) -> int:
        """Smallest number of rows of the stream that hold at least `num_tokens` tokens."""
        epoch = 0
        while self.start(epoch + 1).tokens < num_tokens:
            epoch += 1
        start = self.start(epoch)
        inside = np.searchsorted(self.epoch_rows(epoch).tokens_before, num_tokens - start.tokens)
        return start.rows + int(inside)

    def epoch_rows(self, epoch: int) -> EpochRows:
        """All rows of one epoch."""
        with self._lock:
            if epoch not in self._recent:
                while len(self._recent) > 1:
                    self._recent.pop(next(iter(self._recent)))
                self._recent[epoch] = self._plan_epoch(epoch)
            return self._recent[epoch]

    def _plan_epoch(self, epoch: int) -> EpochRows:
        store, config = self._store, self._config
        samples = epoch_samples(store.sources, self._weights, self._seed, epoch, config.shuffle)
        if config.packing:
            offsets, samples = pack_rows(samples, store.lengths, config.max_length)
        else:
            offsets, samples = single_rows(samples)
        return EpochRows(
            offsets,
            samples,
            tokens_before=_running_sum(store.lengths[samples])[offsets],
            supervised_before=_running_sum(store.supervised[samples])[offsets],
        )


class StepPlan:
    """Rows of every optimizer step. `num_train_epochs` is given when it limits the run."""

    def __init__(
        self, row_plan: RowPlan, global_batch_size: int, num_train_epochs: float | None = None
    ) -> None:
        self.row_plan = row_plan
        self.global_batch_size = global_batch_size
        self.num_train_epochs = num_train_epochs
        self._row_limit = None if num_train_epochs is None else _rows_of(row_plan, num_train_epochs)

    def rows(self, step: int) -> list[Ints]:
        """Sample ids of each of the step's `global_batch_size` rows; empty past the run's end."""
        first, stop = self._border(step), self._border(step + 1)
        rows = [self.row_plan.row(*self.row_plan.locate(row)) for row in range(first, stop)]
        missing = self.global_batch_size - len(rows)
        return rows + [np.empty(0, dtype=np.int64) for _ in range(missing)]

    def sample_ids(self, step: int) -> Ints:
        """Every sample of the step, row after row."""
        return np.concatenate(self.rows(step))

    def num_tokens(self, step: int) -> int:
        """Tokens of the step over all ranks, padding not counted."""
        return self.tokens_before(step + 1) - self.tokens_before(step)

    def num_supervised(self, step: int) -> int:
        """Supervised tokens of the step over all ranks: known before the first forward."""
        return self.supervised_before(step + 1) - self.supervised_before(step)

    def tokens_before(self, step: int) -> int:
        """Tokens trained on when `step` begins."""
        return self.row_plan.before(self._border(step)).tokens

    def supervised_before(self, step: int) -> int:
        """Supervised tokens trained on when `step` begins."""
        return self.row_plan.before(self._border(step)).supervised

    def epoch(self, step: int) -> float:
        """Passes over the data when `step` begins: 1.5 is the middle of the second."""
        epoch, index = self.row_plan.locate(self._border(step))
        return epoch + index / self.row_plan.num_rows(epoch)

    def total_steps(self, train_config: TrainConfig) -> int:
        """Optimizer steps until max_steps, num_train_epochs or max_tokens is reached."""
        if train_config.max_steps is not None:
            return train_config.max_steps
        if train_config.max_tokens is not None:
            return self.steps_reaching(Duration(train_config.max_tokens, "tokens"))
        if train_config.num_train_epochs != self.num_train_epochs or self._row_limit is None:
            raise ValueError("the plan was made for another num_train_epochs")
        return ceil(self._row_limit / self.global_batch_size)

    def steps_reaching(self, length: Duration) -> int:
        """Smallest number of steps that make up so many steps, tokens or epochs."""
        if length.unit == "steps":
            return ceil(length.amount)
        if length.unit == "tokens":
            rows = self.row_plan.rows_reaching(ceil(length.amount))
        else:
            rows = _rows_of(self.row_plan, length.amount)
        return ceil(rows / self.global_batch_size)

    def _border(self, step: int) -> int:
        """First row of the stream that does not belong to the steps before `step`."""
        row = step * self.global_batch_size
        return row if self._row_limit is None else min(row, self._row_limit)


def _rows_of(row_plan: RowPlan, num_epochs: float) -> int:
    """Rows of so many epochs; a part of an epoch is rounded up to whole rows."""
    whole, part = divmod(Fraction(repr(float(num_epochs))), 1)
    start = row_plan.start(whole).rows
    return start + (ceil(row_plan.num_rows(whole) * part) if part else 0)


def _running_sum(values: NDArray[np.integer]) -> Ints:
    """[n + 1] sums of the first 0, 1, ..., n values."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums
