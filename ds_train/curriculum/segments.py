"""Segments: stretches of a run that are ordered by one difficulty each.

A run has one segment, unless its samples are scored again as it goes on (`metric: loss` with
`refresh_at`, self-paced learning). Then a segment ends at each boundary, a step that the recipe
alone decides, and the difficulties of the next one exist only once the run has come there. A block
belongs to the segment in which it begins. Blocks end at boundaries as far as that can be planned:
exactly where a row is a sample out of a pool; packed rows, windows, shares of sources and growing
rows may go on for the rest of a block.

Rows of step t are thus a pure function of (recipe, data fingerprint, fingerprints of the
difficulties of the segments up to t, t), for any number of ranks.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ds_train.curriculum.pool import Floats, Pool
from ds_train.curriculum.scores import DifficultyScores
from ds_train.errors import NotScoredYet

Make = Callable[[DifficultyScores | None], tuple[Floats | None, Sequence[Pool]]]
"""From difficulties to what windows are sorted by [N], and the pool of each group."""


@dataclass(frozen=True, eq=False)
class Segment:
    """What one stretch of the run is drawn from."""

    number: int
    scores: DifficultyScores | None
    """None where nothing is ordered by difficulty."""
    values: Floats | None
    """float32 [N] what windows are sorted by: the scores, or places within their strata."""
    pools: Sequence[Pool]
    """Of each group of samples."""


class Segments:
    """The segments of one run, as far as they are known."""

    def __init__(
        self,
        make: Make,
        scores: DifficultyScores | None,
        steps: Sequence[int] = (),
        global_batch_size: int = 1,
    ) -> None:
        """`scores`: of the first segment; `steps`: first step of each one after it (rising)."""
        self._make, self.steps = make, tuple(steps)
        self._borders = [step * global_batch_size for step in steps]
        self._known: list[Segment] = []
        self.add(scores)

    def add(self, scores: DifficultyScores | None) -> None:
        """The difficulties of the next segment."""
        values, pools = self._make(scores)
        self._known.append(Segment(len(self._known), scores, values, pools))

    @property
    def known(self) -> Sequence[Segment]:
        """All segments whose difficulties exist."""
        return self._known

    @property
    def first(self) -> Segment:
        """The segment with which the run begins."""
        return self._known[0]

    @property
    def next_step(self) -> int | None:
        """First step of which nothing is known yet: the samples are scored before it."""
        passed = len(self._known) - 1
        return self.steps[passed] if passed < len(self.steps) else None

    def rows_left(self, row: int) -> int:
        """Rows from this one to the next boundary, or more than any run has."""
        number = bisect_right(self._borders, row)
        return self._borders[number] - row if number < len(self._borders) else sys.maxsize

    def at(self, row: int) -> Segment:
        """The segment of a block that begins with this row of the stream; NotScoredYet."""
        number = bisect_right(self._borders, row)
        if number < len(self._known):
            return self._known[number]
        step = self.steps[len(self._known) - 1]
        raise NotScoredYet(
            f"curriculum.refresh_at: what is drawn after step {step:,} is known once the run has "
            f"come there, where its model scores the samples again; only steps 1 to {step:,} are "
            "known yet."
        )
