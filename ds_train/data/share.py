"""Which rank takes which rows of a step, micro-batch after micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ds_train.data.mix import Ints
from ds_train.data.pieces import row_tokens
from ds_train.data.store import TokenStore


def share_of_rank(
    store: TokenStore,
    rows: Sequence[Ints],
    *,
    rank: int,
    dp_size: int,
    micro_batch_size: int,
    packing: bool,
) -> list[list[Ints]]:
    """The rows of one rank, micro-batch after micro-batch; every row goes to exactly one rank.

    Where rows do not divide, empty ones fill up the last micro-batches. Packed rows are alike and
    go as they come. Others are sorted by length, longest first, and dealt like cards: a micro-batch
    holds rows of like length, and so do its twins on other ranks.
    """
    per_round = dp_size * micro_batch_size
    num_missing = -len(rows) % per_round
    rows = [*rows, *(np.empty(0, dtype=np.int64) for _ in range(num_missing))]
    order = np.arange(len(rows))
    if not packing:
        order = np.argsort([-row_tokens(store, row) for row in rows], kind="stable")
    shares = []
    for start in range(0, len(rows), per_round):
        in_round = order[start : start + per_round]
        shares.append([rows[index] for index in in_round[rank::dp_size]])
    return shares
