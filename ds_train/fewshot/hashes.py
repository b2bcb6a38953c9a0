"""Hashes of what many samples ask or answer, in whole arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ds_train.data.mix import Ints
from ds_train.data.store import TokenStore

_AT_ONCE = 1 << 16
"""Samples whose tokens lie in memory together."""


def text_hashes(store: TokenStore, samples: Ints, *, supervised: bool) -> NDArray[np.uint64]:
    """uint64 [n]: the supervised tokens of each sample, or all the others, and their order.

    A sum over the tokens of a mixture of id and place; it is the same wherever the tokens stand,
    so that an answer has one hash behind any input.
    """
    parts = [np.empty(0, np.uint64)]
    for begin in range(0, len(samples), _AT_ONCE):
        parts.append(_hashes(store, samples[begin : begin + _AT_ONCE], supervised))
    return np.concatenate(parts)


def _hashes(store: TokenStore, samples: Ints, supervised: bool) -> NDArray[np.uint64]:
    lengths = store.lengths[samples].astype(np.int64)
    begins = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(samples)), lengths)
    flat = np.arange(len(owner)) + (store.starts[samples] - begins)[owner]
    counted = store.flat_mask[flat].astype(bool) == supervised
    place = np.cumsum(counted) - 1
    place -= np.concatenate([[0], np.cumsum(counted)])[begins][owner]
    words = (store.flat_tokens[flat].astype(np.uint64) << np.uint64(32)) + place.astype(np.uint64)
    words = np.where(counted, _mixed(words), np.uint64(0))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words, dtype=np.uint64)])
    return sums[begins + lengths] - sums[begins]


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea and Flood 2014) of each word."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
