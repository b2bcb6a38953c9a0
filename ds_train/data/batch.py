"""Rows of sample ids become tensors: padding, shifted labels, positions, and who gets what.

Worked example, two rows in one micro-batch, row 0 packed from documents a (tokens 5 6 7, the last
two supervised) and b (8 9, the last one supervised), row 1 is c (3 4, nothing supervised)::

    input_ids     5 6 7 8 9 P P P     3 4 P P P P P P      padded to a multiple of 8
    labels        6 7 . 9 . . . .     . . . . . . . .      . is IGNORE; a's last position does not
    position_ids  0 1 2 0 1 0 1 2     0 1 0 1 2 3 4 5        predict b's first token

Positions restart at every document, and attention takes its block-diagonal mask from them; the
padding is a document of its own. `flatten` gives what varlen attention wants: the documents one
after another in a single row [1, tokens], nothing padded. What holds for documents holds for the
pieces of one (data/pieces.py), but that a piece may predict the first token of the one after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from ds_train.data.mix import Ints
from ds_train.data.pack import pack_rows, single_rows
from ds_train.data.parts import is_parts, part_documents
from ds_train.data.pieces import row_parts, row_pieces, row_tokens
from ds_train.data.share import share_of_rank
from ds_train.data.store import TokenStore
from ds_train.model.choice_losses import Candidates
from ds_train.model.shared_rows import WholeRows
from ds_train.ops.reference import IGNORE

PAD_MULTIPLE = 8
"""Row lengths are rounded up to this: tensor cores want it, and it costs a token or two."""
_MOST_ROWS = 512
"""Of a batch of samples of like length."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch on one rank."""

    input_ids: torch.Tensor
    """int64 [rows, length]"""
    labels: torch.Tensor
    """int64 [rows, length]: the token that each position shall predict, or IGNORE."""
    position_ids: torch.Tensor | None
    """int64 [rows, length], restarting at every document; None where a model takes none."""
    sample_ids: Ints
    """Every sample of the batch that is learned from, row after row (stays on the host)."""
    sample_tokens: Ints
    """Tokens of each of these, or of the piece of it that the row holds."""
    num_rows: int
    """Rows of the plan; with `flatten` they lie in one row of the tensors."""
    num_supervised: int
    """Labels that are not IGNORE: known here, so that no GPU has to be asked."""
    candidates: Candidates | None = None
    """Which answer to which example each line is; None where lines are rows."""
    whole: WholeRows | None = None
    """The rows that this is a part of; None where it holds them whole."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; the copy runs beside the computation if pinned."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies on its own."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        positions = None if self.position_ids is None else change(self.position_ids)
        return replace(
            self,
            input_ids=change(self.input_ids),
            labels=change(self.labels),
            position_ids=positions,
            candidates=None if self.candidates is None else self.candidates.mapped(change),
        )


def collate(
    store: TokenStore,
    rows: Sequence[Ints],
    *,
    pad_token_id: int,
    flatten: bool = False,
    max_length: int | None = None,
    with_positions: bool = True,
) -> Batch:
    """One micro-batch out of rows of samples or pieces; an empty row becomes padding without
    labels."""
    lengths = [row_tokens(store, row) for row in rows]
    if flatten:
        # Attention kernels know no empty sequence: one token of padding stands for no row at all.
        sizes, width = (1,), max(1, sum(lengths))
    else:
        sizes, width = (len(rows),), _padded(max(lengths), max_length)
    input_ids = np.full((*sizes, width), pad_token_id, dtype=np.int64)
    labels = np.full((*sizes, width), IGNORE, dtype=np.int64)
    position_ids = np.empty((*sizes, width), dtype=np.int64)
    start = 0
    for number, row in enumerate(rows):
        line = 0 if flatten else number
        start = start if flatten else 0
        for ids, learned in _documents(store, row):
            stop = start + len(ids)
            input_ids[line, start:stop] = ids
            labels[line, start : start + len(learned)] = learned
            position_ids[line, start:stop] = np.arange(len(ids))
            start = stop
        if not flatten or start == 0:
            position_ids[line, start:] = np.arange(width - start)
    none = np.empty(0, dtype=np.int64)
    shown = [row_parts(store, row) for row in rows]
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(labels),
        torch.from_numpy(position_ids) if with_positions else None,
        sample_ids=np.concatenate([none, *(samples for samples, _ in shown)]),
        sample_tokens=np.concatenate([none, *(tokens for _, tokens in shown)]),
        num_rows=len(rows),
        num_supervised=int((labels != IGNORE).sum()),
    )


def _documents(store: TokenStore, row: Ints) -> Iterator[tuple[Ints, Ints]]:
    """(ids [length], labels [length or one less]) of each stretch whose positions run on."""
    if is_parts(row):
        for ids, learned in part_documents(store, row):
            yield ids, np.where(learned[1:], ids[1:], IGNORE)
        return
    for sample, first, end, goes_on in row_pieces(store, row):
        # int64 before IGNORE comes near: stored ids are unsigned and would wrap it around
        last = end + 1 if goes_on else end
        ids, mask = store.tokens(sample)[first:last].astype(np.int64), store.mask(sample)
        yield ids[: end - first], np.where(mask[first + 1 : last], ids[1:], IGNORE)


def step_batches(
    store: TokenStore,
    step_rows: Sequence[Ints],
    *,
    rank: int,
    dp_size: int,
    micro_batch_size: int,
    packing: bool,
    pad_token_id: int,
    flatten: bool = False,
    max_length: int | None = None,
    with_positions: bool = True,
    make: Callable[..., Batch] | None = None,
) -> list[Batch]:
    """One rank's micro-batches of one step, as many on every rank; `make` in place of `collate`."""
    shares = share_of_rank(
        store,
        step_rows,
        rank=rank,
        dp_size=dp_size,
        micro_batch_size=micro_batch_size,
        packing=packing,
    )
    return [
        (make or collate)(
            store,
            rows,
            pad_token_id=pad_token_id,
            flatten=flatten,
            max_length=max_length,
            with_positions=with_positions,
        )
        for rows in shares
    ]


def eval_batches(
    store: TokenStore,
    *,
    rank: int,
    dp_size: int,
    micro_batch_size: int,
    max_length: int,
    packing: bool,
    pad_token_id: int,
    max_rows: int | None = None,
    flatten: bool = False,
    with_positions: bool = True,
    rows: Sequence[Ints] | None = None,
) -> Iterator[Batch]:
    """One rank's batches over a whole store in the store's order; as many on every rank.

    `max_rows` takes the first so many rows. Empty rows fill the last round, without labels.
    `rows` replaces the store's samples, packed or one a row, by rows made by somebody else.
    """
    if rows is None:
        samples = np.arange(len(store.lengths), dtype=np.int64)
        if packing:
            offsets, samples = pack_rows(samples, store.lengths, max_length)
        else:
            offsets, samples = single_rows(samples)
        rows = [samples[start:stop] for start, stop in pairwise(offsets)]
    rows = list(rows[:max_rows])
    per_round = dp_size * micro_batch_size
    rows += [np.empty(0, dtype=np.int64)] * (-len(rows) % per_round)
    shares = share_of_rank(
        store,
        rows,
        rank=rank,
        dp_size=dp_size,
        micro_batch_size=micro_batch_size,
        packing=packing,
    )
    for share in shares:
        yield collate(
            store,
            share,
            pad_token_id=pad_token_id,
            flatten=flatten,
            max_length=max_length,
            with_positions=with_positions,
        )


def length_batches(lengths: NDArray[np.integer], max_tokens: int) -> Iterator[Ints]:
    """Indices of samples in batches of like length, the longest first.

    A batch padded to its longest sample has at most `max_tokens` tokens, or one row.
    """
    longest_first = np.argsort(-lengths.astype(np.int64), kind="stable")
    start = 0
    while start < len(lengths):
        width = -(-int(lengths[longest_first[start]]) // PAD_MULTIPLE) * PAD_MULTIPLE
        stop = start + min(_MOST_ROWS, max(1, max_tokens // width))
        yield longest_first[start:stop]
        start = stop


def _padded(longest: int, max_length: int | None) -> int:
    """Width of a micro-batch: rounded up, but never over max_length for the rounding's sake."""
    width = max(PAD_MULTIPLE, -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE)
    return width if max_length is None else max(1, longest, min(width, max_length))
