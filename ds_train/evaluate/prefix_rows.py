"""Which inputs stand in one row, so that what they begin with in common is computed once.

In lexicographic order neighbours have the longest beginnings in common. An input joins the row of
its neighbour where the tokens that it saves cost more than the attention that it adds: the kernel
computes attention of all tokens of a row to all others, whatever the mask then hides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

MAX_TREE_NODES = 4096
"""Of a row that branches: its mask has this number squared as its size."""

_LEAST_SHARE = 8
"""Inputs with less than this part of their new tokens in common (a BOS, say) stay apart."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """When beginnings that requests have in common are computed once."""

    max_depth: int
    """Requests of more tokens stand alone (attention windows end there); 0 shares nothing."""
    token_cost: float
    """Cost of a token in all but attention, in units of attending to one token."""


NOTHING_SHARED = Sharing(max_depth=0, token_cost=1.0)


@dataclass(slots=True)
class Row:
    """Inputs that share a row, in lexicographic order, with the length of what each shares."""

    members: list[int]
    shared: list[int]
    num_nodes: int
    deepest: int
    """Tokens of the longest input; equal to num_nodes where nothing branches."""

    @property
    def branches(self) -> bool:
        return self.num_nodes > self.deepest


def prefix_rows(inputs: list[Ints], sharing: Sharing, max_nodes: int) -> list[Row]:
    """Inputs in lexicographic order, neighbours in one row where that is cheaper."""
    # big-endian bytes compare as the ids do
    order = sorted(range(len(inputs)), key=lambda i: inputs[i].astype(">u4").tobytes())
    rows: list[Row] = []
    for before, member in zip([None, *order], order, strict=False):
        ids = inputs[member]
        row = rows[-1] if rows else None
        shared = 0 if before is None else _common(inputs[before], ids)
        if row is None or not _is_better(row, len(ids), shared, sharing, max_nodes):
            rows.append(Row([member], [0], len(ids), len(ids)))
            continue
        row.members.append(member)
        row.shared.append(shared)
        row.num_nodes += len(ids) - shared
        row.deepest = max(row.deepest, len(ids))
    return rows


def _common(first: Ints, second: Ints) -> int:
    """Length of the beginning that two inputs have in common."""
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length


def _is_better(row: Row, length: int, shared: int, sharing: Sharing, max_nodes: int) -> bool:
    """Whether an input joins a row, where it costs less than in a row of its own."""
    new, nodes = length - shared, row.num_nodes
    if shared == nodes:
        return True  # goes on where the row ends, or is the same: plain text to any model
    if max(row.deepest, length) > sharing.max_depth or nodes + new > max_nodes:
        return False
    if shared * _LEAST_SHARE < new:
        return False
    alone = length * sharing.token_cost + length**2
    together = new * sharing.token_cost + new * (new + 2 * nodes)
    return together < alone
