"""Permutations of any length whose places are computed one by one, without an array.

A Feistel network over k bits is a permutation of [0, 2^k) whatever its round function: the bits
are cut in two, and each round changes one part by a function of the other. Cycle walking makes it
one of [0, n), where 2^(k-1) < n <= 2^k: a value that is not below n is put through again until it
is, less than twice on average (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).

Up to `SMALL` places a permutation is an array instead, the one that shuffles an epoch: a network
of few bits is too regular, and an array of this size costs nothing.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_train.data.mix import Ints, keyed_permutation

SMALL = 4096
_CHUNK = 16_384
"""Places that are computed at once; 128 KiB."""
_ROUNDS = 8
_MULTIPLIER = np.uint32(0x9E3779B1)  # odd, its bits well mixed
_SHIFT = np.uint32(15)


class Permutation:
    """Permutation of range(length) that depends on length, seed, purpose and numbers alone."""

    def __init__(self, length: int, seed: int, purpose: str, *numbers: int) -> None:
        self.length = length
        self._key = (length, seed, purpose, *numbers)
        self._array: Ints | None = None
        if length <= SMALL:
            self._array = keyed_permutation(length, seed, purpose, *numbers)
        else:
            self._network = Feistel(length, seed, purpose, *numbers)

    def __call__(self, places: Ints) -> Ints:
        """int64: what stands at each of the places, all of them in [0, length)."""
        return self._network(places) if self._array is None else self._array[places]

    def part(self, start: int, stop: int) -> Ints:
        """What stands at places [start, stop)."""
        if stop <= _CHUNK or self._array is not None:
            return self(np.arange(start, stop, dtype=np.int64))
        chunks = range(start // _CHUNK, -(-stop // _CHUNK))
        found = np.concatenate([_chunk(self._key, number) for number in chunks])
        return found[start - chunks[0] * _CHUNK : stop - chunks[0] * _CHUNK]


@lru_cache(maxsize=16)
def _chunk(key: tuple[Any, ...], number: int) -> Ints:
    """Places [number, number + 1) x `_CHUNK` of a large permutation, kept for who asks next.

    A pass is drawn in small parts one after another, and the network has a cost for each call.
    """
    places = np.arange(number * _CHUNK, min((number + 1) * _CHUNK, key[0]), dtype=np.int64)
    return Feistel(*key)(places)


class Feistel:
    """The network: 8 rounds and cycle walking, for any length from 2 to 2^62."""

    def __init__(self, length: int, seed: int, purpose: str, *numbers: int) -> None:
        text = "/".join(["ds_train", "feistel", str(seed), purpose, *map(str, (length, *numbers))])
        digest = hashlib.blake2b(text.encode(), digest_size=8 * _ROUNDS).digest()
        bits = max(2, (length - 1).bit_length())
        self._length = length
        self._keys = np.frombuffer(digest, dtype="<u4").reshape(_ROUNDS, 2)
        self._low_bits = bits // 2
        self._low = np.uint32((1 << bits // 2) - 1)
        self._high = np.uint32((1 << (bits - bits // 2)) - 1)

    def __call__(self, places: Ints) -> Ints:
        """int64: what stands at each of the places."""
        values = self._encrypt(places)
        outside = np.flatnonzero(values >= self._length)
        while outside.size:
            walked = self._encrypt(values[outside])
            values[outside] = walked
            outside = outside[walked >= self._length]
        return values

    def _encrypt(self, values: Ints) -> Ints:
        low = values.astype(np.uint32) & self._low
        high = (values >> self._low_bits).astype(np.uint32)
        for number, keys in enumerate(self._keys):
            if number % 2:
                low ^= _mix(high, *keys) & self._low
            else:
                high ^= _mix(low, *keys) & self._high
        return (high.astype(np.int64) << self._low_bits) | low


def _mix(values: NDArray[np.uint32], first: np.uint32, second: np.uint32) -> NDArray[np.uint32]:
    """A hash of each value and two keys; products wrap around, as they shall."""
    mixed = (values ^ first) * _MULTIPLIER
    mixed ^= mixed >> _SHIFT
    mixed += second
    mixed *= _MULTIPLIER
    mixed ^= mixed >> _SHIFT
    return mixed


class Scramble:
    """Permutation of [0, 2^32) that can be undone, to break ties at the cost of a few passes."""

    def __init__(self, seed: int, purpose: str) -> None:
        text = f"ds_train/scramble/{seed}/{purpose}"
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        self._keys = np.frombuffer(digest, dtype="<u4")

    def __call__(self, values: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """A new array of what the values become."""
        values = values.copy()
        for key in self._keys:
            values ^= key
            values *= _MULTIPLIER
            values ^= values >> _HALF
        return values

    def undo(self, values: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """A new array of the values that became these."""
        values = values.copy()
        for key in self._keys[::-1]:
            values ^= values >> _HALF
            values *= _INVERSE
            values ^= key
        return values


_HALF = np.uint32(16)  # x ^ (x >> 16) undoes itself
_INVERSE = np.uint32(pow(int(_MULTIPLIER), -1, 1 << 32))
