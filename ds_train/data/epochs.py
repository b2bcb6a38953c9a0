"""A block: a stretch of the endless stream of rows that is planned and packed at once.

Without a curriculum or a mixture a block is an epoch, and this is all there is to it. What a block
holds follows from its number and from what stands before it in the stream, never from a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ds_train.config.data import DataConfig
from ds_train.data.mix import Ints, epoch_samples
from ds_train.data.pack import WINDOW, pack_rows, single_rows
from ds_train.data.store import TokenStore
from ds_train.errors import DataError

_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Totals:
    """Rows, samples, tokens and supervised tokens of a stretch of the stream."""

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    supervised: int = 0
    dropped: int = 0
    """Tokens that a curriculum over the length of rows has cut off."""


@dataclass(frozen=True)
class Drawn:
    """What a block was drawn from, where there is a curriculum or a mixture."""

    progress: float
    """Share of the run done when the block begins, 0 .. 1."""
    competence: float
    """Share of the difficulty that may be drawn, 0 .. 1."""
    pools: tuple[int, ...]
    """Samples that may be drawn: of each group (all samples, or each source of a mixture)."""
    stage: int = 0
    """Stage of the mixture."""
    segment: int = 0
    """How many times the samples had been scored again."""
    row_length: int | None = None
    """Tokens of the longest row (or window), where that grows."""


@dataclass(frozen=True)
class BlockRows:
    """Rows of one block: row r is samples[offsets[r]:offsets[r + 1]]."""

    offsets: Ints
    samples: Ints
    tokens_before: Ints
    """[num_rows + 1] tokens of the rows before each row of this block."""
    supervised_before: Ints
    """[num_rows + 1] supervised tokens of the rows before each row of this block."""
    tokens: Ints
    """[num_samples] tokens of each sample, or of each piece of one."""
    drawn: Drawn | None = None
    starts: Ints | None = None
    """[num_samples] first token of each piece of a sample; None where samples are whole."""
    stops: Ints | None = None
    """[num_samples] end of each piece."""
    roles: Ints | None = None
    """[num_samples] what each part of an episode is for (data/parts.py); None without episodes."""
    num_samples_before: Ints | None = None
    """[num_rows + 1] samples before each row, where there are pieces."""
    dropped_before: Ints | None = None
    """[num_rows + 1] tokens cut off before each row of this block; None where none are."""

    @property
    def num_rows(self) -> int:
        """Rows of the block."""
        return len(self.offsets) - 1

    @property
    def samples_before(self) -> Ints:
        """[num_rows + 1] samples before each row of this block."""
        return self.offsets if self.num_samples_before is None else self.num_samples_before

    def row(self, index: int) -> Ints:
        """One row: sample ids [n], pieces [n, 3] of sample, start, stop (data/pieces.py), or parts
        [n, 4] with a role (data/parts.py)."""
        here = slice(self.offsets[index], self.offsets[index + 1])
        if self.starts is None or self.stops is None:
            return self.samples[here]
        columns = [self.samples[here], self.starts[here], self.stops[here]]
        if self.roles is not None:
            columns.append(self.roles[here])
        return np.stack(columns, axis=1)

    def before(self, index: int, start: Totals) -> Totals:
        """What stands before a row, when `start` stands before the block."""
        dropped = 0 if self.dropped_before is None else int(self.dropped_before[index])
        return Totals(
            start.rows + index,
            start.samples + int(self.samples_before[index]),
            start.tokens + int(self.tokens_before[index]),
            start.supervised + int(self.supervised_before[index]),
            start.dropped + dropped,
        )

    def after(self, start: Totals) -> Totals:
        """What stands before the next block, when `start` stands before this one."""
        return self.before(self.num_rows, start)


class Blocks(Protocol):
    """Plans blocks. Block n is asked for first when all before it have been, then at any time."""

    num_recent: int
    """Planned blocks worth keeping in memory."""

    def plan(self, number: int, start: Totals) -> BlockRows:
        """Block `number`, before which `start` stands."""
        ...

    def epoch(self, start: Totals, number: int, rows: BlockRows, index: int) -> float:
        """Passes over the data before row `index` of block `number`."""
        ...

    def target_samples(self, num_epochs: float) -> int | None:
        """Samples that make up so many epochs; None where a block is an epoch."""
        ...


def rows_of_samples(
    store: TokenStore,
    samples: Ints,
    data_config: DataConfig,
    drawn: Drawn | None = None,
    window: int = WINDOW,
    *,
    in_place: bool = False,
) -> BlockRows:
    """Samples become rows: packed within windows of so many samples, or one each.

    `in_place` allows the memory of `samples` to be written to.
    """
    if data_config.packing:
        longest = data_config.max_length
        offsets, samples = pack_rows(samples, store.lengths, longest, window, in_place=in_place)
    else:
        offsets, samples = single_rows(samples)
    lengths = store.lengths[samples].astype(np.int32, copy=False)
    return BlockRows(
        offsets,
        samples,
        tokens_before=_sum_before(store.lengths, samples, offsets),
        supervised_before=_sum_before(store.supervised, samples, offsets),
        tokens=lengths,
        drawn=drawn,
    )


class EpochBlocks:
    """Epoch after epoch, each mixed by the sources' weights and shuffled."""

    num_recent = 2
    """A step may reach across the border of two epochs."""

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

    def plan(self, number: int, start: Totals) -> BlockRows:
        """Epoch `number`."""
        store, config, seed, weights = self._store, self._config, self._seed, self._weights
        if store.examples is None or not store.examples.has_renderings:
            samples = epoch_samples(store.sources, weights, seed, number, config.shuffle)
        else:  # an epoch has one rendering of each example
            sources = store.sources[store.examples.starts[:-1]]
            examples = epoch_samples(sources, weights, seed, number, config.shuffle)
            samples = store.examples.draw(examples, seed, number)
        return rows_of_samples(store, samples, config, in_place=True)

    def epoch(self, start: Totals, number: int, rows: BlockRows, index: int) -> float:
        """Passes over the data: 1.5 is the middle of the second."""
        return number + index / rows.num_rows

    def target_samples(self, num_epochs: float) -> int | None:
        """None: a block is an epoch."""
        return None


def _sum_before(values: NDArray[np.integer], samples: Ints, offsets: Ints) -> Ints:
    """[num_rows + 1] sums of values[samples] before each row, of which none is empty; few of them
    are in memory at once."""
    sums = np.empty(len(offsets) - 1, dtype=np.int64)
    for first in range(0, len(sums), _ROWS_AT_ONCE):
        borders = offsets[first : first + _ROWS_AT_ONCE + 1]
        here = values[samples[borders[0] : borders[-1]]]
        within = borders[:-1] - borders[0]
        sums[first : first + _ROWS_AT_ONCE] = np.add.reduceat(here, within, dtype=np.int64)
    return running_sum(sums)


def running_sum(values: NDArray[np.integer | np.bool_]) -> Ints:
    """[n + 1] sums of the first 0, 1, ..., n values."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums
