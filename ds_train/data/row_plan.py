"""The endless stream of rows of a run, made of blocks: of epochs, or with a curriculum or a mixture
of short stretches (curriculum/blocks.py).

Nothing moves on as rows are asked for: any row can be asked for at any time, in any order, from
several threads. What is kept is a memory of plans already made: four integers per block for good,
and the arrays of the blocks used last (a step may reach across borders).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from threading import RLock

import numpy as np

from ds_train.config.data import DataConfig
from ds_train.data.epochs import BlockRows, Blocks, EpochBlocks, Totals
from ds_train.data.mix import Ints
from ds_train.data.store import TokenStore


class RowPlan:
    """The endless stream of rows, block after block."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self._recent: dict[int, BlockRows] = {}
        self._starts = [Totals()]  # before block 0, 1, ...: as far as anybody has asked
        self._lock = RLock()  # the prefetch thread and the training loop ask at the same time

    @classmethod
    def uniform(
        cls,
        store: TokenStore,
        data_config: DataConfig,
        seed: int,
        source_weights: Sequence[float],
    ) -> RowPlan:
        """Epoch after epoch, without a curriculum and without stages of a mixture."""
        return cls(EpochBlocks(store, data_config, seed, source_weights))

    def num_rows(self, number: int) -> int:
        """Rows of one block."""
        return self.start(number + 1).rows - self.start(number).rows

    def row(self, number: int, index: int) -> Ints:
        """Row `index` of block `number`: sample ids [n], pieces [n, 3] or parts [n, 4]."""
        return self.block(number).row(index)

    def parts(self, first: int, stop: int) -> tuple[Ints, Ints]:
        """([n], [n]) samples of rows [first, stop) of the stream or pieces of them; tokens."""
        none = np.empty(0, dtype=np.int64)
        samples, tokens = [none], [none]
        while first < stop:
            number, index = self.locate(first)
            rows = self.block(number)
            end = min(rows.num_rows, index + stop - first)
            here = slice(rows.offsets[index], rows.offsets[end])
            kept = slice(None) if rows.roles is None else rows.samples[here] >= 0  # no separators
            samples.append(rows.samples[here][kept])
            tokens.append(rows.tokens[here][kept])
            first += end - index
        return np.concatenate(samples), np.concatenate(tokens)

    def start(self, number: int) -> Totals:
        """What the blocks before `number` hold together."""
        with self._lock:
            while len(self._starts) <= number:
                self._starts.append(self.block(len(self._starts) - 1).after(self._starts[-1]))
            return self._starts[number]

    def locate(self, row: int) -> tuple[int, int]:
        """(block, index in the block) of a row of the stream."""
        with self._lock:
            while self._starts[-1].rows <= row:
                self.start(len(self._starts))
            number = bisect_right(self._starts, row, key=lambda start: start.rows) - 1
            return number, row - self._starts[number].rows

    def _locate_end(self, row: int) -> tuple[int, int]:
        """`locate`, but the end of the last planned block where the row is the one after it.

        What stands before that row is known, and the block that it begins may not be yet.
        """
        with self._lock:
            while self._starts[-1].rows < row:
                self.start(len(self._starts))
            number = len(self._starts) - 1
            if row > 0 and row == self._starts[number].rows:
                return number - 1, self.num_rows(number - 1)
            return self.locate(row)

    def before(self, row: int) -> Totals:
        """Rows, samples, tokens and supervised tokens before a row of the stream."""
        number, index = self._locate_end(row)
        return self.block(number).before(index, self.start(number))

    def epoch(self, row: int) -> float:
        """Passes over the data before a row of the stream: 1.5 is the middle of the second."""
        number, index = self._locate_end(row)
        return self.blocks.epoch(self.start(number), number, self.block(number), index)

    def rows_reaching(self, num_tokens: int) -> int:
        """Smallest number of rows of the stream that hold at least `num_tokens` tokens."""
        number = 0
        while self.start(number + 1).tokens < num_tokens:
            number += 1
        start = self.start(number)
        inside = np.searchsorted(self.block(number).tokens_before, num_tokens - start.tokens)
        return start.rows + int(inside)

    def rows_of_epochs(self, num_epochs: float) -> int:
        """Rows of so many epochs; a part of an epoch is rounded up to whole rows."""
        target = self.blocks.target_samples(num_epochs)
        if target is None:
            whole, part = divmod(Fraction(repr(float(num_epochs))), 1)
            before = self.start(whole).rows
            return before + (ceil(self.num_rows(whole) * part) if part else 0)
        number = 0
        while self.start(number + 1).samples < target:
            number += 1
        if self.start(number + 1).samples == target:
            return self.start(number + 1).rows  # with the last pieces of what was begun before
        start, rows = self.start(number), self.block(number)
        return start.rows + int(np.searchsorted(rows.samples_before, target - start.samples))

    def block(self, number: int) -> BlockRows:
        """All rows of one block."""
        with self._lock:
            if number not in self._recent:
                self.start(number)  # blocks are planned one after another the first time
            if number not in self._recent:
                while len(self._recent) >= self.blocks.num_recent:
                    self._recent.pop(next(iter(self._recent)))
                self._recent[number] = self.blocks.plan(number, self._starts[number])
            return self._recent[number]
