"""Pools: the samples of a group in the order in which a curriculum lets them in.

A group is all samples, or those of one source of a mixture. The pool at competence c is its first
P samples: ceil(c n) of n (normalise: cdf), or as many as have d <= d_min + c (d_max - d_min)
(normalise: value). Ties are broken by a keyed hash, so that equal samples come in no order of
their own; all of `random_pool` is such a tie. Its pools are as large as those of easy_to_hard.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds_train.config.curriculum import CurriculumConfig
from ds_train.curriculum.permute import Scramble
from ds_train.data.mix import Ints

Floats = NDArray[np.float32]


class Pool:
    """One group of samples, ordered; without a curriculum all of it is in the pool."""

    def __init__(
        self,
        members: NDArray[np.integer] | None,
        num_samples: int,
        curriculum: CurriculumConfig | None = None,
        values: Floats | None = None,
        seed: int = 0,
        name: str = "",
    ) -> None:
        """`members`: ids of the group, None for all; `values` [num_samples] difficulty of each."""
        self.num_samples = num_samples
        self.minimum = 1
        """A pool is never smaller than this."""
        self._members = None if members is None else members.astype(np.uint32, copy=False)
        self._values, self._curriculum = values, curriculum
        self._order: NDArray[np.uint32] | None = None
        if curriculum is not None:
            assert values is not None
            self._range = float(values.min()), float(values.max())
            constant = curriculum.order == "random_pool"
            self._order = difficulty_order(None if constant else values, num_samples, seed, name)
            if curriculum.order == "hard_to_easy":
                self._order = self._order[::-1]
            if curriculum.normalise == "cdf":  # values are needed no more: one array is enough
                self._values = None
                if self._members is not None:
                    self._order, self._members = self._members[self._order], None

    def size(self, competence: float) -> int:
        """Samples in the pool, at least `minimum` (or all)."""
        return min(self.num_samples, max(self.minimum, self.asked_size(competence)))

    def asked_size(self, competence: float) -> int:
        """Samples that the pacing asks for."""
        if competence >= 1:
            return self.num_samples
        if self._curriculum is None or self._curriculum.normalise == "cdf":
            return math.ceil(round(competence * self.num_samples, 6))
        return self._within(self._curriculum.order, competence)

    def _within(self, order: str, competence: float) -> int:
        """Samples of the lowest part of the range of values; of the highest for hard_to_easy."""
        low, high = self._range
        reach = competence * (high - low)
        values, places = self._values, self._order
        assert values is not None and places is not None
        if order == "random_pool":
            return int(np.count_nonzero(values <= np.float32(low + reach)))
        if order == "hard_to_easy":
            limit = -np.float32(high - reach)
            return bisect_right(range(len(places)), limit, key=lambda place: -values[places[place]])
        limit = np.float32(low + reach)
        return bisect_right(range(len(places)), limit, key=lambda place: values[places[place]])

    def ids(self, places: Ints) -> Ints:
        """Sample ids at places of the order, [0, pool size)."""
        found: NDArray[np.integer] = places if self._order is None else self._order[places]
        return (found if self._members is None else self._members[found]).astype(np.int64)


@dataclass(frozen=True)
class PoolPart:
    """What may be drawn of a pool now: its first `size` samples."""

    pool: Pool
    size: int


def difficulty_order(
    values: Floats | None, num_samples: int, seed: int, name: str = ""
) -> NDArray[np.uint32]:
    """Indices from the easiest to the hardest; without values, or where equal, in keyed order.

    One sort in place of 8 bytes a sample: the difficulty's bits above the scrambled index. The
    indices then take the place of the keys, so that nothing else of this size is ever made.
    """
    scramble = Scramble(seed, f"ties/{name}")
    keys = np.empty(num_samples, dtype=np.uint64)
    for start, stop in _stretches(num_samples):
        keys[start:stop] = scramble(np.arange(start, stop, dtype=np.uint32))
        if values is not None:
            high = _rising_bits(values[start:stop]).astype(np.uint64) << np.uint64(32)
            keys[start:stop] |= high
    keys.sort()
    order = keys.view(np.uint32)
    for start, stop in _stretches(num_samples):
        # what is written lies before what is still to be read
        order[start:stop] = scramble.undo(keys[start:stop].astype(np.uint32))  # the low half
    del order
    keys.resize((num_samples + 1) // 2)  # gives the other half back
    return keys.view(np.uint32)[:num_samples]


def _stretches(num_samples: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of stretches so short that arrays of their size cost nothing."""
    step = 1 << 18
    for start in range(0, num_samples, step):
        yield start, min(num_samples, start + step)


def _rising_bits(values: Floats) -> NDArray[np.uint32]:
    """Unsigned integers in the same order as the (finite) floats."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    sign = np.uint32(1 << 31)
    return np.where(bits & sign, ~bits, bits | sign)


def stratified(values: Floats, strata: NDArray[np.integer], seed: int) -> Floats:
    """float32 [N]: place of each sample within its own stratum, 0 .. 1, instead of its value.

    A pool over these holds the same share of every stratum.
    """
    order = difficulty_order(values, len(values), seed, "strata")
    result = np.empty(len(values), dtype=np.float32)
    counts = np.bincount(strata)
    before = np.zeros_like(counts)  # samples of each stratum in the stretches before
    for start, stop in _stretches(len(values)):
        here = order[start:stop]
        here = here[np.argsort(strata[here], kind="stable")]
        stratum = strata[here]
        in_stretch = np.bincount(stratum, minlength=len(counts))
        first = before - (np.cumsum(in_stretch) - in_stretch)
        place = (np.arange(len(here)) + first[stratum]).astype(np.float32)
        result[here] = (place + np.float32(0.5)) / counts[stratum].astype(np.float32)
        before += in_stretch
    return result
