"""`data.limit`: so many bytes or documents of the training data, nested in any larger part.

Documents (conversations, labelled examples) stand in an order made from a seed and their content,
whatever the order of the files; a limit takes them from the front. So 20 kB lie within 100 kB, and
two recipes with the same limit train on the same text. Text is cut at the end of a sample, nearest
to the bytes asked for; conversations and examples stay whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ds_train.config.data import LimitConfig
from ds_train.data.store import TokenStore
from ds_train.errors import DataError, quoted

Ints = NDArray[np.int64]


def limited(store: TokenStore, limit: LimitConfig, names: Sequence[str]) -> TokenStore:
    """The training samples that a limit leaves; those of other sources stay.

    `names`: of each source index. Raises DataError: an unknown source, or not so much data.
    """
    if unknown := [name for name in limit.sources if name not in names]:
        raise DataError(
            f"data.limit.sources: no training source is called {quoted(unknown[0])}; there are "
            f"{', '.join(dict.fromkeys(names))}."
        )
    wanted = [place for place, name in enumerate(names) if name in (limit.sources or names)]
    concerned = np.isin(store.sources, wanted)
    chosen = _front(store, np.flatnonzero(concerned), limit)
    return store.select(np.union1d(chosen, np.flatnonzero(~concerned)))


def _front(store: TokenStore, candidates: Ints, limit: LimitConfig) -> Ints:
    """Those of the candidates that stand in front; in no order."""
    sources, ordinals = store.sources[candidates], store.ordinals[candidates]
    begins = np.ones(len(candidates), bool)
    begins[1:] = (sources[1:] != sources[:-1]) | (ordinals[1:] != ordinals[:-1])
    document = np.cumsum(begins) - 1
    place = _mix(store.hashes[candidates][begins], limit.seed)
    order = np.lexsort((np.arange(len(candidates)), document, place[document]))
    in_order = candidates[order]
    rank = np.cumsum(np.diff(document[order], prepend=-1) != 0)  # 1 for the first document
    if limit.samples is not None:
        if limit.samples > rank[-1]:
            raise DataError(
                f"data.limit.samples = {limit.samples:,}: the training data has only {rank[-1]:,}; "
                "lower it, or add data."
            )
        return in_order[rank <= limit.samples]
    assert limit.bytes is not None
    # pieces of a text may go alone; whatever else a document is made of goes with it
    ends = np.append(rank[1:] != rank[:-1], True)
    if store.examples is None:
        ends[:] = True
    sums = np.cumsum(store.num_bytes[in_order], dtype=np.int64)[ends]
    if sums[-1] < limit.bytes:
        raise DataError(
            f"data.limit.bytes = {limit.bytes:,}: the training data has only {sums[-1]:,} bytes of "
            "text that is learned from; lower it, or add data."
        )
    nearest = int(np.argmin(np.abs(sums - limit.bytes)))
    return in_order[: np.flatnonzero(ends)[nearest] + 1]


def _mix(hashes: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Content hashes and a seed become an order (splitmix64's finaliser)."""
    start = (seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & (2**64 - 1)
    mixed = hashes ^ np.uint64(start)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
