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
from ds_train.evaluate.prefix_rows import MAX_TREE_NODES, Row, Sharing, prefix_rows

Ints = NDArray[np.int64]

PAD_MULTIPLE = 16
"""Rows of such lengths: attention on a CPU takes up to twice as long just below one."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the model, in tokens."""

    context: Sequence[int]
    """[at least 1]"""
    continuation: Sequence[int]
    """[at least 1]"""


@dataclass(frozen=True)
class ScoreBatch:
    """Rows that are computed in one forward pass."""

    input_ids: Ints
    """[rows, length]; padding is 0"""
    position_ids: Ints | None
    """[rows, length], depths; None where no row branches."""
    visible: NDArray[np.bool_] | None
    """[rows, length, length]: the second token is the first one's ancestor, or itself."""
    places: Ints
    """[2, n]: row and column of each label"""
    labels: Ints
    """[n]: the token that is predicted there"""
    owners: Ints
    """[n]: number of the request that each label belongs to"""


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
    rows = prefix_rows(inputs, sharing, min(MAX_TREE_NODES, batch_tokens))
    # like with like, the longest first: memory that does not suffice is found at once
    rows.sort(key=lambda row: (row.branches, row.num_nodes), reverse=True)
    groups: list[list[Row]] = []
    for row in rows:
        last = groups[-1] if groups else [row]
        size = (len(last) + 1) * _padded(last[0].num_nodes)
        if groups and last[0].branches == row.branches and size <= batch_tokens:
            last.append(row)
        else:
            groups.append([row])
    return BatchPlan(inputs, labels, groups, max_length)


class BatchPlan:
    """All batches of a list of requests; one is made when it is asked for."""

    def __init__(
        self, inputs: list[Ints], labels: list[Ints], groups: list[list[Row]], max_length: int
    ) -> None:
        self._inputs, self._labels, self._groups = inputs, labels, groups
        self._max_length = max_length

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
        num_nodes, branches = rows[0].num_nodes, rows[0].branches
        length = _padded(num_nodes)
        if not branches:  # positions are counted from the left, and a model may have no more
            length = max(num_nodes, min(length, self._max_length))
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


def _padded(num_nodes: int) -> int:
    return -(-num_nodes // PAD_MULTIPLE) * PAD_MULTIPLE
