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
_PARTS = 8
"""Of a long permutation, sorted one after another: a power of two."""
_WORDS_AT_ONCE = 1 << 18


def keyed_words(length: int, seed: int, purpose: str, *numbers: int) -> NDArray[np.uint64]:
    """[length] random 64-bit words that depend on the arguments alone, the first ones on no length.

    Raw Philox words: numpy promises that these stay the same from one release to the next.
    """
    return _word_stream(seed, purpose, *numbers).random_raw(length)


def _word_stream(seed: int, purpose: str, *numbers: int) -> np.random.Philox:
    """Where the words come from, one after another."""
    text = "/".join(["ds_train", str(seed), purpose, *map(str, numbers)])
    key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype="<u8")
    return np.random.Philox(key=key)


def keyed_permutation(length: int, seed: int, purpose: str, *numbers: int) -> Ints:
    """Permutation of range(length) that depends on the arguments alone.

    The order of keyed words rather than numpy's `permutation`, of which numpy does not promise that
    it stays the same.
    """
    if length <= _INT32_FROM:
        return np.argsort(keyed_words(length, seed, purpose, *numbers), kind="stable")
    order = np.empty(length, dtype=np.int32 if length < 1 << 31 else np.int64)
    start = 0
    for part in range(_PARTS):
        stream = _word_stream(seed, purpose, *numbers)
        places, words = _words_of_part(stream, length, part, order.dtype)
        stop = start + places.size
        order[start:stop] = places[np.argsort(words, kind="stable")]
        start = stop
    return order


def _words_of_part(
    stream: np.random.Philox, length: int, part: int, dtype: np.dtype[Any]
) -> tuple[Ints, NDArray[np.uint64]]:
    """Of `length` words those in part `part` of all values, and their places.

    Drawn again for each part, which costs less than keeping all: 8 bytes a sample are twice what
    the permutation itself takes.
    """
    places, kept = [], []
    shift = np.uint64(64 - (_PARTS.bit_length() - 1))
    for start in range(0, length, _WORDS_AT_ONCE):
        words = stream.random_raw(min(_WORDS_AT_ONCE, length - start))
        here = np.flatnonzero(words >> shift == part)
        kept.append(words[here])
        places.append((here + start).astype(dtype))
    return np.concatenate(places), np.concatenate(kept)


def epoch_samples(
    sources: NDArray[np.integer], weights: Sequence[float], seed: int, epoch: int, shuffle: bool
) -> Ints:
    """Sample ids of one epoch, in the order in which they are packed into rows.

    `sources` [num_samples] holds each sample's source; `weights[s]` the passes over source s in
    an epoch. Unshuffled, every pass has the order of the files and sources follow one another.
    """
    few = sources.size <= _INT32_FROM or sources.size >= 1 << 31
    sizes = np.bincount(sources, minlength=len(weights))[: len(weights)].tolist()
    spans = [_span(size, w, epoch) for size, w in zip(sizes, weights, strict=True)]
    samples = np.empty(sum(map(len, spans)), dtype=np.int64 if few else np.int32)
    end = 0
    for source, (size, span) in enumerate(zip(sizes, spans, strict=True)):
        begin, end = end, end + len(span)
        members = np.flatnonzero(sources == source).astype(samples.dtype)
        places = _slice_of_passes(size, span, seed, source, shuffle)
        np.take(members, places, out=samples[begin:end], mode="clip")  # others buffer the output
        del members, places
    if shuffle:
        samples = samples[keyed_permutation(samples.size, seed, "epoch", epoch)]
    return samples


def _span(length: int, weight: float, epoch: int) -> range:
    """Which places of a source's endless stream of passes an epoch takes."""
    exact = Fraction(repr(float(weight)))  # 0.1 as the user wrote it, not its binary neighbour
    return range(int(epoch * exact * length), int((epoch + 1) * exact * length))


def _slice_of_passes(length: int, span: range, seed: int, source: int, shuffle: bool) -> Ints:
    """Positions within a source's passes, at these places of the endless stream of them."""
    start, stop = span.start, span.stop
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
