"""Demonstrations for many queries at once: draws without replacement, in whole arrays.

What can be drawn stands on a line of places [0, n), the members of a class side by side; a draw is
made within a range of it, avoiding a stretch (the query itself, or all of its class) and what was
drawn before. Random numbers come from the caller, so that nothing here has a state.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ds_train.data.mix import Ints, keyed_words

Words = NDArray[np.uint64]


def pick(words: Words, low: Ints, high: Ints, avoid_low: Ints, avoid_high: Ints) -> Ints:
    """Places [e, k], all different: draw j of query i is uniform over what is left of its range.

    Args:
        words: [e, k] random words.
        low, high: [e, k] range [low, high) of each draw.
        avoid_low, avoid_high: [e] stretch that is never drawn; inside or outside of any range.

    Something must be left of every range.
    """
    num, k = words.shape
    starts, sizes = np.empty((num, k + 1), np.int64), np.ones((num, k + 1), np.int64)
    starts[:, 0], sizes[:, 0] = avoid_low, avoid_high - avoid_low
    for draw in range(k):
        here = slice(0, draw + 1)
        order = np.argsort(starts[:, here], axis=1, kind="stable")
        start = np.take_along_axis(starts[:, here], order, axis=1)
        size = np.take_along_axis(sizes[:, here], order, axis=1)
        inside = (start >= low[:, [draw]]) & (start < high[:, [draw]])
        size = np.where(inside, size, 0)
        room = high[:, draw] - low[:, draw] - size.sum(axis=1)
        place = low[:, draw] + (words[:, draw] % room.astype(np.uint64)).astype(np.int64)
        for column in range(draw + 1):  # from the left, so that what is skipped moves it on
            place += np.where(place >= start[:, column], size[:, column], 0)
        starts[:, draw + 1] = place
    return starts[:, 1:]


def take_turns(seed: int, purpose: str, numbers: tuple[int, ...], left: Ints, k: int) -> Ints:
    """Classes [e, k] that take turns: each once a round, in random order, as long as they last.

    `left` [e, c]: members of each class that may be drawn; at least k together. The other
    arguments are those of `keyed_words`.
    """
    num, num_classes = left.shape
    rounds = 1
    while (np.minimum(left, rounds).sum(axis=1) < k).any():
        rounds += 1
    words = keyed_words(num * num_classes * rounds, seed, f"{purpose}/turns", *numbers)
    words = words.reshape(num, num_classes, rounds)
    turn = np.arange(rounds)
    # the round in the high bits: no class has its second turn before all others had their first
    keys = (words >> np.uint64(16)) | (turn.astype(np.uint64) << np.uint64(48))
    keys[left[:, :, None] <= turn] = np.iinfo(np.uint64).max
    chosen = np.argsort(keys.reshape(num, -1), axis=1, kind="stable")[:, :k] // rounds
    shown = np.argsort(
        keyed_words(num * k, seed, f"{purpose}/order", *numbers).reshape(num, k), axis=1
    )
    return np.take_along_axis(chosen, shown, axis=1)
