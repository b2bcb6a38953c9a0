"""What every step trains on: a pure function of (recipe, data, difficulty, step), on every rank.

Step t of `StepPlan` takes rows [t x G, (t + 1) x G) of the stream (row_plan.py), G being the global
batch size; only a run limited by epochs ends, with a last step that empty rows fill up. Rows in
quarantine (quarantine.py) become empty where they are, and nothing moves up.
"""

from __future__ import annotations

from math import ceil

import numpy as np

from ds_train.config.train import TrainConfig
from ds_train.data.epochs import Totals
from ds_train.data.mix import Ints
from ds_train.data.quarantine import Quarantine
from ds_train.data.row_plan import RowPlan
from ds_train.units import Duration


class StepPlan:
    """Rows of every optimizer step. `num_train_epochs` is given when it limits the run."""

    def __init__(
        self,
        row_plan: RowPlan,
        global_batch_size: int,
        num_train_epochs: float | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.row_plan = row_plan
        self.global_batch_size = global_batch_size
        self.num_train_epochs = num_train_epochs
        self.quarantine = quarantine or Quarantine()
        self._row_limit = (
            None if num_train_epochs is None else row_plan.rows_of_epochs(num_train_epochs)
        )

    def rows(self, step: int) -> list[Ints]:
        """The step's `global_batch_size` rows, each sample ids [n], pieces [n, 3] (data/pieces.py)
        or parts [n, 4] (data/parts.py); empty past the run's end, and in quarantine."""
        first, stop = self.first_row(step), self.first_row(step + 1)
        rows = [self._row(row, step) for row in range(first, stop)]
        missing = self.global_batch_size - len(rows)
        return rows + [_no_row() for _ in range(missing)]

    def _row(self, row: int, step: int) -> Ints:
        """A row of the stream as a step has it: empty in quarantine."""
        found = self.row_plan.row(*self.row_plan.locate(row))
        samples = found if found.ndim == 1 else found[:, 0]
        return _no_row() if self.quarantine.hides(samples, step) else found

    def _hidden_rows(self, step: int) -> list[int]:
        """Rows of the stream that belong to a step and are left out of it."""
        if not self.quarantine.concerns(step):
            return []
        stretch = range(self.first_row(step), self.first_row(step + 1))
        return [row for row in stretch if len(self._row(row, step)) == 0]

    def sample_ids(self, step: int) -> Ints:
        """Every sample of the step, row after row."""
        return self.parts(step)[0]

    def parts(self, step: int) -> tuple[Ints, Ints]:
        """([n], [n]) every sample of the step or piece of one, and its tokens, row after row."""
        first, stop = self.first_row(step), self.first_row(step + 1)
        hidden = self._hidden_rows(step)
        if not hidden:
            return self.row_plan.parts(first, stop)
        left = [
            self.row_plan.parts(row, row + 1) for row in range(first, stop) if row not in hidden
        ]
        none = np.empty(0, dtype=np.int64)
        samples, tokens = zip(*left, strict=True) if left else ((none,), (none,))
        return np.concatenate(samples), np.concatenate(tokens)

    def num_tokens(self, step: int) -> int:
        """Tokens of the step over all ranks, padding not counted."""
        planned = self.tokens_before(step + 1) - self.tokens_before(step)
        return planned - sum(self._of_row(row).tokens for row in self._hidden_rows(step))

    def num_supervised(self, step: int) -> int:
        """Supervised tokens of the step over all ranks: known before the first forward."""
        planned = self.supervised_before(step + 1) - self.supervised_before(step)
        return planned - sum(self._of_row(row).supervised for row in self._hidden_rows(step))

    def _of_row(self, row: int) -> Totals:
        """Tokens and supervised tokens of one row of the stream."""
        before, after = self.row_plan.before(row), self.row_plan.before(row + 1)
        return Totals(
            tokens=after.tokens - before.tokens, supervised=after.supervised - before.supervised
        )

    def tokens_before(self, step: int) -> int:
        """Tokens of the stream before `step`: where the run stands. Rows in quarantine count, so
        that schedules and the run's length stay as they are."""
        return self.row_plan.before(self.first_row(step)).tokens

    def dropped_before(self, step: int) -> int:
        """Tokens of samples drawn before `step` that were cut off."""
        return self.row_plan.before(self.first_row(step)).dropped

    def supervised_before(self, step: int) -> int:
        """Supervised tokens trained on when `step` begins."""
        return self.row_plan.before(self.first_row(step)).supervised

    def epoch(self, step: int) -> float:
        """Passes over the data when `step` begins: 1.5 is the middle of the second."""
        return self.row_plan.epoch(self.first_row(step))

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
            rows = self.row_plan.rows_of_epochs(length.amount)
        return ceil(rows / self.global_batch_size)

    def first_row(self, step: int) -> int:
        """First row of the stream that does not belong to the steps before `step`."""
        row = step * self.global_batch_size
        return row if self._row_limit is None else min(row, self._row_limit)


def _no_row() -> Ints:
    return np.empty(0, dtype=np.int64)
