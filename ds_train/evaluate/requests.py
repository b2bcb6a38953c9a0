"""Log-likelihood requests become batches: what they have in common is computed once.

A request asks for log p(continuation | context). Requests that begin alike (the candidates of a
question, questions after the same demonstrations) are laid into one row as a tree; each token sees
its ancestors only, and stands at its depth. Three candidates of one context::

    context  c c c c  a a a  b b  d d d d        nodes of the row, 13 in place of 21
    depth    0 1 2 3  4 5 6  4 5  4 5 6 7        position_ids

The last token of a request is predicted, never read, so candidates of one token cost nothing but
their label. Where nothing branches, the row is plain text under the causal mask.

Batches are planned from the requests alone, never from the number of ranks: whoever computes a
batch, the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds_train.errors import DataError

Ints = NDArray[np.int64]

MAX_TREE_NODES = 4096
"""Of a row that branches: its mask has this number squared as its size."""

_LEAST_SHARE = 8
"""Inputs with less than this part of their new tokens in common (a BOS, say) stay apart."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the model, in tokens."""

    context: Sequence[int]
    """[at least 1]"""
    continuation: Sequence[int]
    """[at least 1]"""


@dataclass(frozen=True, slots=True)
class Sharing:
    """When beginnings that requests have in common are computed once."""

    max_depth: int
    """Requests of more tokens stand alone (attention windows end there); 0 shares nothing."""
    token_cost: float
    """Cost of a token in all but attention, in units of attending to one token."""


NOTHING_SHARED = Sharing(max_depth=0, token_cost=1.0)


@dataclass(frozen=True)
class ScoreBatch:
    """Rows that are computed in one forward pass."""

    input_ids: Ints
    """[rows, length]; padding is 0"""
    position_ids: Ints | None
    """[rows, length], the depth of each token; None where no row branches."""
    visible: NDArray[np.bool_] | None
    """[rows, length, length]: the second token is the first one's ancestor, or itself."""
    places: Ints
    """[2, n]: row and column of each label"""
    labels: Ints
    """[n]: the token that is predicted there"""
    owners: Ints
    """[n]: number of the request that each label belongs to"""


@dataclass(slots=True)
class _Row:
    """Inputs that share a row, in lexicographic order, with the length of what each shares."""

    members: list[int]
    shared: list[int]
    num_nodes: int
    deepest: int
    """Tokens of the longest input; equal to num_nodes where nothing branches."""

    @property
    def branches(self) -> bool:
        return self.num_nodes > self.deepest


def fit(requests: Sequence[Request], max_length: int) -> tuple[list[Ints], list[Ints]]:
    """What is read and what is predicted, per request: the last max_length + 1 tokens of both.

    The last token is predicted only, so the model reads at most `max_length` tokens.

    Raises:
        DataError: a continuation is empty, longer than the model's window, or has no context.
    """
    inputs, labels = [], []
    for number, request in enumerate(requests):
        wanted = len(request.continuation)
        if wanted == 0 or len(request.context) == 0:
            what = "continuation" if wanted == 0 else "context"
            raise DataError(
                f"request {number}: its {what} has no tokens; there is nothing to score."
            )
        if wanted > max_length:
            raise DataError(
                f"request {number}: its continuation has {wanted:,} tokens, and the model reads at "
                f"most {max_length:,}; shorten that text."
            )
        whole = np.asarray([*request.context, *request.continuation], dtype=np.int64)
        inputs.append(whole[-(max_length + 1) : -1])
        labels.append(whole[-wanted:])
    return inputs, labels


def plan_batches(
    requests: Sequence[Request], *, max_length: int, batch_tokens: int, sharing: Sharing
) -> BatchPlan:
    """Rows and batches for the requests.

    Args:
        max_length: tokens that the model reads at most; longer requests lose their beginning.
        batch_tokens: tokens of a batch, padding included; one row may have more.
    """
    inputs, labels = fit(requests, max_length)
    rows = _rows(inputs, sharing, min(MAX_TREE_NODES, batch_tokens))
    # like with like, the longest first: memory that does not suffice is found at once
    rows.sort(key=lambda row: (row.branches, row.num_nodes), reverse=True)
    groups: list[list[_Row]] = []
    for row in rows:
        last = groups[-1] if groups else None
        if (
            last is None
            or last[0].branches != row.branches
            or (len(last) + 1) * last[0].num_nodes > batch_tokens
        ):
            groups.append([row])
        else:
            last.append(row)
    return BatchPlan(inputs, labels, groups)


class BatchPlan:
    """All batches of a list of requests; one is made when it is asked for."""

    def __init__(self, inputs: list[Ints], labels: list[Ints], groups: list[list[_Row]]) -> None:
        self._inputs, self._labels, self._groups = inputs, labels, groups

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads, padding left out."""
        return sum(row.num_nodes for rows in self._groups for row in rows)

    @property
    def num_request_tokens(self) -> int:
        """Tokens that it would read if every request stood alone."""
        return sum(len(ids) for ids in self._inputs)

    def share(self, rank: int, world_size: int) -> Iterator[tuple[ScoreBatch, bool]]:
        """A rank's batches, equally many on every rank; False where one is only there for that."""
        num_rounds = -(-len(self) // world_size)
        for step in range(num_rounds):
            index = step * world_size + rank
            yield self.batch(min(index, len(self) - 1)), index < len(self)

    def batch(self, index: int) -> ScoreBatch:
        """The tensors of one batch."""
        rows = self._groups[index]
        length, branches = rows[0].num_nodes, rows[0].branches
        input_ids = np.zeros((len(rows), length), dtype=np.int64)
        depth = visible = None
        if branches:
            depth = np.zeros_like(input_ids)
            # what is padded sees itself, as a softmax over nothing is not a number
            visible = np.broadcast_to(
                np.eye(length, dtype=bool), (len(rows), length, length)
            ).copy()
        places, labels, owners = [], [], []
        for number, row in enumerate(rows):
            path, used = np.empty(0, dtype=np.int64), 0
            for member, shared in zip(row.members, row.shared, strict=True):
                ids, label = self._inputs[member], self._labels[member]
                new = slice(used, used + len(ids) - shared)
                input_ids[number, new] = ids[shared:]
                path = np.concatenate([path[:shared], np.arange(new.start, new.stop)])
                if depth is not None and visible is not None:
                    depth[number, new] = np.arange(shared, len(ids))
                    visible[number, new, path[:shared]] = True
                    visible[number, new, new] = np.tri(new.stop - new.start, dtype=bool)
                places.append(
                    np.stack([np.full(len(label), number), path[len(ids) - len(label) :]])
                )
                labels.append(label)
                owners.append(np.full(len(label), member))
                used = new.stop
        return ScoreBatch(
            input_ids,
            depth,
            visible,
            np.concatenate(places, axis=1),
            np.concatenate(labels),
            np.concatenate(owners),
        )


def _rows(inputs: list[Ints], sharing: Sharing, max_nodes: int) -> list[_Row]:
    """Inputs in lexicographic order, neighbours in one row where that is cheaper."""
    # big-endian bytes compare as the ids do
    order = sorted(range(len(inputs)), key=lambda i: inputs[i].astype(">u4").tobytes())
    rows: list[_Row] = []
    for before, member in zip([None, *order], order, strict=False):
        ids = inputs[member]
        row = rows[-1] if rows else None
        shared = 0 if before is None else _common(inputs[before], ids)
        if row is None or not _is_better(row, len(ids), shared, sharing, max_nodes):
            rows.append(_Row([member], [0], len(ids), len(ids)))
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


def _is_better(row: _Row, length: int, shared: int, sharing: Sharing, max_nodes: int) -> bool:
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
