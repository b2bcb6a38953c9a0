"""A token store in memory, for tests that need many stores or hand-made ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ds_train.data.store import TokenStore


def make_store(
    ids: Sequence[Sequence[int]],
    masks: Sequence[Sequence[int]] | None = None,
    sources: Sequence[int] | None = None,
) -> TokenStore:
    """Store of these samples; without masks every token but the first is supervised.

    Each token stands for two bytes of text.
    """
    if masks is None:
        masks = [[0] + [1] * (len(one) - 1) for one in ids]
    lengths = np.array([len(one) for one in ids], np.int32)
    return TokenStore(
        lengths=lengths,
        supervised=np.array([sum(mask) for mask in masks], np.int32),
        num_bytes=np.array([2 * sum(mask) for mask in masks], np.int32),
        sources=np.array([0] * len(ids) if sources is None else sources, np.int16),
        hashes=np.arange(len(ids), dtype=np.uint64),
        ordinals=np.arange(len(ids)),
        starts=np.cumsum(lengths, dtype=np.int64) - lengths,
        flat_tokens=np.array([token for one in ids for token in one], np.uint16),
        flat_mask=np.array([flag for mask in masks for flag in mask], np.uint8),
        meta={},
    )


def store_of_lengths(lengths: Sequence[int], sources: Sequence[int] | None = None) -> TokenStore:
    """Store whose sample i is `lengths[i]` tokens, each with the id i + 1."""
    return make_store([[i + 1] * length for i, length in enumerate(lengths)], sources=sources)
