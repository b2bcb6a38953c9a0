"""Blocks of a run with a curriculum or a mixture: short stretches of one pool and one stage.

A block's pool follows from where the run stands when it begins, so blocks are short: about 1/256
of the run (1/64 where rows are packed), at least one global batch, at most `LONGEST` samples. Rows
are packed inside a block (or, with `window`, inside a window), so packing moves no sample further.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

from ds_train.config.curriculum import CurriculumConfig
from ds_train.config.data import DataConfig
from ds_train.curriculum.draws import Draws
from ds_train.curriculum.mixture import Shares
from ds_train.curriculum.pacing import RunLength, competence, curriculum_end
from ds_train.curriculum.pool import Pool, PoolPart
from ds_train.curriculum.renderings import Renderings
from ds_train.curriculum.segments import Segments
from ds_train.curriculum.seq_len import Growing
from ds_train.data.epochs import BlockRows, Drawn, Totals, rows_of_samples
from ds_train.data.mix import Ints
from ds_train.data.pack import WINDOW
from ds_train.data.store import TokenStore
from ds_train.units import Duration, Unit

LONGEST = 4096
"""Samples of a block, at most (or one global batch, where that holds more): a few milliseconds of
packing."""
SHORTEST_PACKED = 256
"""Samples of a block that is packed, at least: fewer would leave rows half empty."""
_BLOCKS_A_RUN = {False: 256, True: 64}
"""By whether rows are packed. Measured on 20,000 samples of 5 to 200 tokens in rows of 2,048, a run
of 64,000 samples: blocks of 256 fill rows to 96.1 %, of 1,000 to 99.1 %, an epoch to 99.8 %."""


class BlockSizes:
    """How many samples a block shall have, from estimates of how many make up a row or token."""

    def __init__(
        self, store: TokenStore, data: DataConfig, length: RunLength, *, whole_steps: bool
    ) -> None:
        """`whole_steps`: blocks before a border are whole steps, as far as that can be known."""
        self._unit_samples = 1
        mean_length = max(1.0, store.num_tokens / store.num_samples)
        per_row = max(1.0, data.max_length / mean_length) if data.packing else 1.0
        self.per_step = ceil(length.global_batch_size * per_row)
        if whole_steps or data.packing:
            self._unit_samples = self.per_step
        self._length = length
        self._samples_of: dict[Unit, float] = {
            "tokens": 1 / mean_length,
            "steps": self.per_step,
            "epochs": length.num_samples,
        }
        whole_run = length.limit.amount * self._samples_of[length.limit.unit]
        shortest = max(SHORTEST_PACKED, self.per_step) if data.packing else self.per_step
        wanted = max(shortest, min(LONGEST, ceil(whole_run / _BLOCKS_A_RUN[data.packing])))
        # unpacked rows are samples, so that whole steps have one pool
        self.usual = wanted if data.packing else wanted // shortest * shortest

    def until(self, places: Sequence[float | Duration], at: Totals) -> int:
        """Samples of a block that begins here and does not reach beyond one of the places.

        Where rows are packed, the distance to a place is an estimate, and at least one step.
        """
        least, unit_samples = self.usual, self._unit_samples
        for place in places:
            if (reached := self._length.reached(place, at)) < 1:
                unit, amount = self._length.resolve(place)
                left = round((1 - reached) * amount * self._samples_of[unit] / unit_samples)
                least = min(least, max(1, left) * unit_samples)
        return least


class DrawnBlocks:
    """Block after block, each drawn as the curriculum and the mixture say."""

    num_recent = 16

    def __init__(
        self,
        store: TokenStore,
        data: DataConfig,
        curriculum: CurriculumConfig | None,
        length: RunLength,
        segments: Segments,
        draws: Draws,
        shares: Shares | None = None,
        growing: Growing | None = None,
        renderings: Renderings | None = None,
    ) -> None:
        """`store`: with one sample for each labelled example; `renderings`: with all of them."""
        self._renderings = renderings or Renderings(store, 0)
        self._store, self._data, self._curriculum = self._renderings.store, data, curriculum
        self.length, self.segments, self.shares, self._draws = length, segments, shares, draws
        self.growing = growing
        self.sizes = BlockSizes(store, data, length, whole_steps=shares is None)
        self._borders = [] if shares is None else list(shares.borders)
        if curriculum is not None:
            self._borders += [*curriculum.pacing.at, curriculum_end(curriculum.pacing)]
        if growing is not None:
            self._borders.append(growing.end)
        self._borders += [Duration(step, "steps") for step in segments.steps]

    @property
    def pools(self) -> Sequence[Pool]:
        """Of each group, as the difficulties of the run's start order them."""
        return self.segments.first.pools

    def plan(self, number: int, start: Totals) -> BlockRows:
        """Block `number`: its pool, what is drawn out of it, packed."""
        drawn, samples = self._draw(number, start)
        window = WINDOW
        if self._curriculum is not None and self._curriculum.window is not None:
            window = min(window, self._curriculum.window)
        if self.growing is not None:
            return self.growing.rows(number, samples, drawn, window)
        return rows_of_samples(self._store, samples, self._data, drawn, window)

    def moved(self, number: int, start: Totals) -> Ints:
        """By how many places packing has moved each sample of a block; in no order."""
        before, after = self._draw(number, start)[1], self.plan(number, start).samples
        if self.growing is not None:  # of a sample that was cut, the piece that comes first counts
            after = after[np.sort(np.unique(after, return_index=True)[1])]
            before = before[np.isin(before, after)]
        places = [np.argsort(samples, kind="stable") for samples in (before, after)]
        return np.abs(places[0] - places[1])

    def _draw(self, number: int, start: Totals) -> tuple[Drawn, Ints]:
        drawn, wanted = self.drawn_from(start), self.sizes.until(self._borders, start)
        if self.growing is not None:
            wanted = self.growing.wanted(wanted, start)
        elif not self._data.packing:  # a row is a sample, so the next segment can begin in time
            wanted = min(wanted, self.segments.rows_left(start.rows))
        pools = self.segments.at(start.rows).pools
        parts = [PoolPart(pool, size) for pool, size in zip(pools, drawn.pools, strict=True)]
        return drawn, self._renderings.draw(number, self._draws.draw(number, start, wanted, parts))

    def drawn_from(self, at: Totals) -> Drawn:
        """What a block that begins here would be drawn from."""
        segment, share = self.segments.at(at.rows), 1.0
        if self._curriculum is not None and self._curriculum.window is None:
            share = competence(self._curriculum, self.length, at)
        return Drawn(
            progress=self.length.progress(at),
            competence=share,
            pools=tuple(pool.size(share) for pool in segment.pools),
            segment=segment.number,
            stage=self.shares.stage(at) if self.shares is not None else 0,
            row_length=self.growing.width(at) if self.growing is not None else None,
        )

    def epoch(self, start: Totals, number: int, rows: BlockRows, index: int) -> float:
        """Samples before a row over those of the data: passes, on average."""
        return (start.samples + int(rows.samples_before[index])) / self.length.num_samples

    def target_samples(self, num_epochs: float) -> int | None:
        """Samples that make up so many epochs."""
        return ceil(round(num_epochs * self.length.num_samples, 6))
