"""Which samples one epoch holds, and in which order: the mixture of sources, shuffled.

A source's weight is the number of passes over it in one epoch. Every source has an endless
stream of passes, each pass a permutation of its own; epoch e takes the slice from e x weight to
(e + 1) x weight passes of it. So weight 0.5 takes one half in even epochs and the other half in
odd ones, weight 2 takes each sample twice an epoch, and any weight is exact over time.

Nothing here keeps a state: a permutation is made anew from (seed, purpose, numbers) each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[Any]
"""int64, or int32 where ids are many and small enough."""

_INT32_FROM = 1 << 20
"""Permutations of more are int32: of ten million samples every array counts."""
_SORTED_AT_ONCE = 1 << 20
"""Words that are sorted at a time."""


def keyed_words(length: int, seed: int, purpose: str, *numbers: int) -> NDArray[np.uint64]:
    """[length] random 64-bit words that depend on the arguments alone, the first ones on no length.

    Raw Philox words: numpy promises that these stay the same from one release to the next.
    """
    text = "/".join(["ds_train", str(seed), purpose, *map(str, numbers)])
    key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype="<u8")
    return np.random.Philox(key=key).random_raw(length)


def keyed_permutation(length: int, seed: int, purpose: str, *numbers: int) -> Ints:
    """Permutation of range(length) that depends on the arguments alone.

    The order of keyed words rather than numpy's `permutation`, of which numpy does not promise that
    it stays the same.
    """
    words = keyed_words(length, seed, purpose, *numbers)
    if length <= _INT32_FROM:
        return np.argsort(words, kind="stable")
    order = np.empty(length, dtype=np.int32 if length < 1 << 31 else np.int64)
    # words are even: those that begin with the same bits are as many as there are of any others
    num_bits = (length // _SORTED_AT_ONCE).bit_length()
    start = 0
    for first_bits in range(1 << num_bits):
        here = np.flatnonzero(words >> np.uint64(64 - num_bits) == first_bits)
        stop = start + here.size
        order[start:stop] = here[np.argsort(words[here], kind="stable")]
        start = stop
    return order


def epoch_samples(
    sources: NDArray[np.integer], weights: Sequence[float], seed: int, epoch: int, shuffle: bool
) -> Ints:
    """Sample ids of one epoch, in the order in which they are packed into rows.

    `sources` [num_samples] holds each sample's source; `weights[s]` the passes over source s in
    an epoch. Unshuffled, every pass has the order of the files and sources follow one another.
    """
    parts = []
    few = sources.size <= _INT32_FROM or sources.size >= 1 << 31
    for source, weight in enumerate(weights):
        members = np.flatnonzero(sources == source).astype(np.int64 if few else np.int32)
        parts.append(members[_slice_of_passes(members.size, weight, seed, source, epoch, shuffle)])
        del members
    samples = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.int64)])
    del parts
    if shuffle:
        samples = samples[keyed_permutation(samples.size, seed, "epoch", epoch)]
    return samples


def _slice_of_passes(
    length: int, weight: float, seed: int, source: int, epoch: int, shuffle: bool
) -> Ints:
    """Positions [epoch x weight, (epoch + 1) x weight) of a source's endless stream of passes."""
    exact = Fraction(repr(float(weight)))  # 0.1 as the user wrote it, not its binary neighbour
    start, stop = int(epoch * exact * length), int((epoch + 1) * exact * length)
    parts: list[Ints] = []
    while start < stop:
        number, offset = divmod(start, length)
        stop_here = min(length, offset + stop - start)
        if shuffle:
            one_pass = keyed_permutation(length, seed, "pass", source, number)
        else:
            one_pass = np.arange(length)
        parts.append(one_pass[offset:stop_here])
        start += stop_here - offset
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
