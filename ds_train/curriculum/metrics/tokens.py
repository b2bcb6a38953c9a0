"""Difficulty from the tokens alone: how many there are, and how rare they are.

length          tokens of the sample
target_length   supervised tokens of the sample
rarity          sum over its tokens w of -log p(w), natural logarithm; p(w) is how often w stands
                in the training samples, over all their tokens (Platanios et al. 2019,
                arXiv:1903.09848, section 2). A sum: with lengths that vary it is mostly the length
rarity_mean     rarity / length

Every sample is added up for itself, so that neither chunks nor processes change a value.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ds_train.data.store import TokenStore
from ds_train.data.workers import run_tasks

Floats = NDArray[np.float64]

CHUNK_TOKENS = 2_000_000
"""About so many tokens go to a process at once."""

FEW_TOKENS = 500_000_000
"""Less than this is done in the process itself: measured on 89M tokens, one process took 0.7 CPU
seconds and two, most of it for their start, 2.6 (benchmarks/results/scoring.md)."""


@dataclass(frozen=True, slots=True)
class FlatTokens:
    """The flat token array of a store as a process can be given it: mapped again, not copied."""

    path: str | None
    dtype: str
    array: np.ndarray | None
    """The tokens themselves, of a store that lies in no file."""

    @classmethod
    def of(cls, store: TokenStore) -> FlatTokens:
        """Those of a store."""
        flat = store.flat_tokens
        if isinstance(flat, np.memmap) and flat.filename is not None:
            return cls(str(flat.filename), flat.dtype.str, None)
        return cls(None, flat.dtype.str, np.asarray(flat))

    def open(self) -> np.ndarray:
        """uint16 or uint32 [all tokens]."""
        if self.path is None:
            assert self.array is not None
            return self.array
        return np.memmap(self.path, self.dtype, mode="r")


def chunks(store: TokenStore, chunk_tokens: int = CHUNK_TOKENS) -> Iterator[tuple[Any, Any]]:
    """(starts, lengths) of consecutive samples that hold about `chunk_tokens` tokens together."""
    before = np.cumsum(store.lengths, dtype=np.int64) // chunk_tokens
    borders = np.flatnonzero(np.diff(before, prepend=-1, append=-1))
    for first, stop in pairwise(borders.tolist()):
        yield store.starts[first:stop], store.lengths[first:stop].astype(np.int64)


def progress(results: Iterable[Any], sizes: Iterable[int], total: int, what: str) -> Iterator[Any]:
    """The results as they are, with a bar on a terminal; `sizes` says how far each one goes."""
    hidden = not sys.stderr.isatty()
    with tqdm(total=total, desc=what, unit=" tokens", unit_scale=True, disable=hidden) as bar:
        for result, size in zip(results, sizes, strict=True):
            yield result
            bar.update(size)


class Counter:
    """Counts the ids of samples."""

    def __init__(self, tokens: FlatTokens) -> None:
        self._tokens = tokens.open()

    def run(self, starts: np.ndarray, lengths: np.ndarray) -> NDArray[np.int64]:
        """int64 [highest id + 1]: how often each id stands in these samples."""
        first, stop = int(starts[0]), int(starts[-1] + lengths[-1])
        block = self._tokens[first:stop]
        if lengths.sum() == stop - first:
            return np.bincount(block)
        borders = np.zeros(stop - first + 1, np.int8)  # between them lie samples of another part
        np.add.at(borders, starts - first, 1)
        np.add.at(borders, starts - first + lengths, -1)
        return np.bincount(block[np.cumsum(borders[:-1], dtype=np.int8).view(bool)])


class RarityAdder:
    """Adds up what each id of a sample is worth."""

    def __init__(self, tokens: FlatTokens, worth: Floats) -> None:
        self._tokens, self._worth = tokens.open(), worth

    def run(self, starts: np.ndarray, lengths: np.ndarray) -> Floats:
        """float64 [samples]: sum of each one's ids."""
        first, stop = int(starts[0]), int(starts[-1] + lengths[-1])
        worth = self._worth[self._tokens[first:stop]]
        borders = np.stack([starts - first, starts - first + lengths], axis=1).ravel()
        # a border at the very end is none that reduceat takes; every second sum lies in between
        return np.add.reduceat(worth, borders[:-1])[::2]


def token_difficulty(kind: str, store: TokenStore, num_workers: int) -> Floats:
    """float64 [N]: a metric of this file for every sample of a store in the order of its files.

    Raises:
        ValueError: the samples do not stand in the order of the flat arrays.
    """
    if kind == "length":
        return store.lengths.astype(np.float64)
    if kind == "target_length":
        return store.supervised.astype(np.float64)
    rarity = _rarity(store, num_workers)
    return rarity / store.lengths if kind == "rarity_mean" else rarity


def _rarity(store: TokenStore, num_workers: int) -> Floats:
    if np.any(np.diff(store.starts) <= 0):
        raise ValueError("samples must stand in the order of the store")
    total = store.num_tokens
    num_workers = 1 if total < FEW_TOKENS else num_workers
    tokens = FlatTokens.of(store)

    def run(make: Any, *arguments: Any, what: str) -> Iterator[Any]:
        sizes = (int(lengths.sum()) for _, lengths in chunks(store))
        results = run_tasks(make, (tokens, *arguments), chunks(store), num_workers, doing="scoring")
        return progress(results, sizes, total, what)

    counts = np.zeros(0, np.int64)
    for part in run(Counter, what="counting tokens"):
        if len(part) > len(counts):
            counts, part = part, counts
        counts[: len(part)] += part
    worth = np.zeros(len(counts))
    seen = counts > 0
    worth[seen] = np.log(total) - np.log(counts[seen])
    return np.concatenate(list(run(RarityAdder, worth, what="rarity")))
