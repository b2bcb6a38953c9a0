"""Which samples a block draws: out of a pool, covering the epoch, or sorted in windows.

Each of these is asked for blocks one after another the first time, and for any of them later; what
a block draws follows from its number and from what stood before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ds_train.config.curriculum import CurriculumConfig
from ds_train.curriculum.pacing import RunLength, curriculum_end
from ds_train.curriculum.permute import Permutation
from ds_train.curriculum.pool import Pool, PoolPart
from ds_train.curriculum.segments import Segments
from ds_train.data.epochs import Totals
from ds_train.data.mix import Ints


class Draws(Protocol):
    """A way to draw blocks."""

    def draw(self, number: int, at: Totals, wanted: int, parts: Sequence[PoolPart]) -> Ints:
        """Sample ids of block `number`, about `wanted`; `parts`: what each group gives now."""
        ...


@dataclass(frozen=True)
class Cursor:
    """Where a group stands before a block."""

    part: PoolPart | None = None
    """What it draws from."""
    since: int = 0
    """Block from which on it has drawn from this."""
    place: int = 0
    """Samples drawn out of this pool."""
    drawn: int = 0
    """Samples drawn out of this group, ever."""
    owed: float = 0.0
    """Tokens that a mixture still owes it (or, negative, has given too many)."""


def stream(cursor: Cursor, count: int, seed: int, group: int) -> Ints:
    """The next `count` samples of the endless passes over a pool, each pass shuffled anew."""
    assert cursor.part is not None
    pool, size = cursor.part.pool, cursor.part.size
    parts = [np.empty(0, dtype=np.int64)]
    place, left = cursor.place, count
    while left > 0:
        number, offset = divmod(place, size)
        here = min(left, size - offset)
        shuffled = Permutation(size, seed, "pool", group, cursor.since, number)
        parts.append(pool.ids(shuffled.part(offset, offset + here)))
        place, left = place + here, left - here
    return np.concatenate(parts)


class PoolDraws:
    """Passes over the pool, without replacement; another pool, or size of it, begins a new pass.

    A block ends where a pass or an epoch does, so that no sample comes twice in it.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._cursors = [Cursor()]

    def draw(self, number: int, at: Totals, wanted: int, parts: Sequence[PoolPart]) -> Ints:
        """Samples of one block."""
        cursor, (part,) = self._cursors[number], parts
        if cursor.part != part:
            cursor = Cursor(part, since=number)
        total = part.pool.num_samples
        count = min(wanted, part.size - cursor.place % part.size, total - at.samples % total)
        if len(self._cursors) == number + 1:
            self._cursors.append(Cursor(part, cursor.since, cursor.place + count))
        return stream(cursor, count, self._seed, group=0)


class WindowDraws:
    """Shuffled epochs, sorted by difficulty inside windows until the curriculum ends."""

    def __init__(
        self, curriculum: CurriculumConfig, length: RunLength, segments: Segments, seed: int
    ) -> None:
        assert curriculum.window is not None
        self._curriculum, self._length, self._window = curriculum, length, curriculum.window
        self._segments, self._seed = segments, seed

    def draw(self, number: int, at: Totals, wanted: int, parts: Sequence[PoolPart]) -> Ints:
        """Whole windows; the last one of an epoch may be smaller."""
        total = parts[0].size
        epoch, offset = divmod(at.samples, total)
        count = max(1, wanted // self._window) * self._window
        shuffled = Permutation(total, self._seed, "window", epoch)
        samples = shuffled.part(offset, min(total, offset + count))
        if self._curriculum.order == "random_pool" or self._has_ended(at):
            return samples
        windows = np.arange(len(samples)) // self._window
        difficulty = self._segments.at(at.rows).values
        assert difficulty is not None
        values = difficulty[samples]
        if self._curriculum.order == "hard_to_easy":
            values = -values
        return samples[np.lexsort((values, windows))]  # stable: ties stay as shuffled

    def _has_ended(self, at: Totals) -> bool:
        end = curriculum_end(self._curriculum.pacing)
        return self._curriculum.then == "uniform" and self._length.reached(end, at) >= 1


class CoverDraws:
    """Each sample exactly once an epoch, drawn uniformly from what the pool has not yet given.

    An epoch is one array of places of the order: [0, filled) drawn, [filled, admitted) waiting,
    the rest not yet let in. Where fewer wait than are wanted, the next ones are let in early.
    """

    def __init__(self, pool: Pool, seed: int) -> None:
        self._pool, self._seed = pool, seed
        self._asked: list[tuple[int, int, int]] = []  # of each block: epoch, samples, pool
        self._epochs: dict[int, _Epoch] = {}

    def draw(self, number: int, at: Totals, wanted: int, parts: Sequence[PoolPart]) -> Ints:
        """Samples of one block; an epoch that was forgotten is drawn again from its start."""
        size = parts[0].size
        total = self._pool.num_samples
        epoch, offset = divmod(at.samples, total)
        count = min(wanted, total - offset)
        if len(self._asked) == number:
            self._asked.append((epoch, count, size))
        state = self._epochs.get(epoch)
        if state is None or state.filled < offset:
            state = self._replay(epoch, number)
        if state.filled == offset:
            self._extend(state, epoch, count, size)
        return self._pool.ids(state.places[offset : offset + count].astype(np.int64))

    def _replay(self, epoch: int, number: int) -> _Epoch:
        """The epoch up to block `number`."""
        while len(self._epochs) > 1:  # a step may reach across the border of two
            self._epochs.pop(next(iter(self._epochs)))
        state = _Epoch(np.arange(self._pool.num_samples, dtype=np.uint32))
        self._epochs[epoch] = state
        for of_epoch, count, size in self._asked[:number]:
            if of_epoch == epoch:
                self._extend(state, epoch, count, size)
        return state

    def _extend(self, state: _Epoch, epoch: int, count: int, size: int) -> None:
        """Draw `count` more of the places that wait, and bring them to the front."""
        state.admitted = max(state.admitted, size, state.filled + count)
        waiting = state.admitted - state.filled
        chosen = Permutation(waiting, self._seed, "cover", epoch, state.filled).part(0, count)
        front = state.places[state.filled :]
        drawn = front[chosen]
        stays = np.ones(count, dtype=bool)
        stays[chosen[chosen < count]] = False
        front[chosen[chosen >= count]] = front[:count][stays]
        front[:count] = drawn
        state.filled += count


@dataclass
class _Epoch:
    """Places of one epoch, as far as they have been drawn."""

    places: NDArray[np.uint32]
    filled: int = 0
    admitted: int = 0
