"""Pieces: rows that hold parts of samples, for a curriculum over the length of rows.

A row is either sample ids [n], each sample whole, or pieces [n, 3]: sample, start, stop. A sample
of 9 tokens t0 .. t8 at a length of 4::

    reshape    [0, 4) [3, 7) [6, 9)      three rows, or parts of rows. The token at a border stands
                                         twice, first to be predicted, then to be read, so that
                                         each label is learned exactly once
    truncate   [0, 4)                    t4 .. t8 are dropped, and counted
    window     [0, 4) [4, 8) [8, 9)      one after another in one row: t3 predicts t4, but t4 sees
                                         nothing before itself, as positions begin anew there

A piece without any label is left out (attention does not cross pieces, so nobody reads it), and
its tokens are counted as dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ds_train.config.data import DataConfig
from ds_train.data.epochs import BlockRows, Drawn, running_sum
from ds_train.data.mix import Ints
from ds_train.data.pack import pack_rows, single_rows
from ds_train.data.parts import is_parts, learned_samples
from ds_train.data.store import TokenStore

Mode = Literal["reshape", "truncate", "window"]


def row_parts(store: TokenStore, row: Ints) -> tuple[Ints, Ints]:
    """([n], [n]) samples of a row that are learned from, or pieces of them, and their tokens."""
    if is_parts(row):
        return learned_samples(row)
    if row.ndim == 1:
        return row, store.lengths[row].astype(np.int64)
    return row[:, 0], row[:, 2] - row[:, 1]


def row_tokens(store: TokenStore, row: Ints) -> int:
    """Tokens of a row of any kind."""
    return int(store.lengths[row].sum() if row.ndim == 1 else (row[:, 2] - row[:, 1]).sum())


def row_pieces(store: TokenStore, row: Ints) -> Iterator[tuple[int, int, int, bool]]:
    """(sample, start, stop, goes on) of each part of a row.

    `goes on`: the next part begins where this one stops, so that the last token of this one
    predicts the first of the next.
    """
    if row.ndim == 1:
        yield from ((sample, 0, int(store.lengths[sample]), False) for sample in row.tolist())
        return
    parts = row.tolist()
    for number, (sample, start, stop) in enumerate(parts):
        goes_on = number + 1 < len(parts) and parts[number + 1][:2] == [sample, stop]
        yield sample, start, stop, goes_on


@dataclass(frozen=True)
class Cut:
    """Samples cut into pieces; every array is [num_pieces]."""

    samples: Ints
    starts: Ints
    stops: Ints
    supervised: Ints
    """Labels of each piece, at least 1."""
    num_samples: Ints
    """Drawn samples that a piece stands for, where it is the first of them that is kept."""
    dropped: Ints
    """Tokens of those samples that are in none of the pieces."""


def cut_samples(store: TokenStore, samples: Ints, width: int, mode: Mode) -> Cut:
    """`reshape` or `truncate` samples to pieces of at most `width` tokens (2 or more)."""
    lengths = store.lengths[samples].astype(np.int64)
    counts = np.ones(len(samples), dtype=np.int64)
    if mode == "reshape":
        counts = np.maximum(1, -((1 - lengths) // (width - 1)))  # ceil((length - 1) / (width - 1))
    first = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(samples)), counts)
    starts = (np.arange(len(owner)) - first[owner]) * (width - 1)
    stops = np.minimum(starts + width, lengths[owner])
    supervised = _labels(store, samples, lengths > width, owner, starts, stops)
    kept = np.flatnonzero(supervised)
    if not kept.size:
        none = np.empty(0, dtype=np.int64)
        return Cut(none, none, none, none, none, none)
    # what was drawn and left out as a whole is counted with the next piece that is kept
    stands_for = np.minimum(np.searchsorted(kept, first), len(kept) - 1)
    twice = kept[1:][(np.diff(kept) == 1) & (owner[kept[1:]] == owner[kept[:-1]])]
    covered = np.bincount(owner[kept], (stops - starts)[kept], minlength=len(samples))
    covered -= np.bincount(owner[twice], minlength=len(samples))
    return Cut(
        samples[owner[kept]],
        starts[kept],
        stops[kept],
        supervised[kept],
        np.bincount(stands_for, minlength=len(kept)),
        np.bincount(stands_for, lengths - covered, minlength=len(kept)).astype(np.int64),
    )


def _labels(
    store: TokenStore, samples: Ints, is_cut: np.ndarray, owner: Ints, starts: Ints, stops: Ints
) -> Ints:
    """Labels of each piece; the masks of samples that are cut have to be read."""
    supervised = store.supervised[samples].astype(np.int64)[owner]
    if not is_cut.any():
        return supervised
    long = samples[is_cut]
    before = running_sum(np.concatenate([store.mask(sample) for sample in long.tolist()]))
    base = np.zeros(len(samples), dtype=np.int64)
    base[is_cut] = running_sum(store.lengths[long])[:-1]
    mine = is_cut[owner]
    begin = base[owner][mine]
    # the first token of a piece is read, and predicted by none of the piece's tokens
    supervised[mine] = before[begin + stops[mine]] - before[begin + starts[mine] + 1]
    return supervised


def rows_of_pieces(
    store: TokenStore,
    cut: Cut,
    order: Ints,
    width: int,
    data_config: DataConfig,
    drawn: Drawn,
    window: int,
) -> BlockRows:
    """Pieces, taken in `order`, become rows of at most `width` tokens."""
    lengths = cut.stops - cut.starts
    if data_config.packing:
        offsets, order = pack_rows(order, lengths, width, window)
    else:
        offsets, order = single_rows(order)
    return BlockRows(
        offsets,
        cut.samples[order],
        tokens_before=running_sum(lengths[order])[offsets],
        supervised_before=running_sum(cut.supervised[order])[offsets],
        tokens=lengths[order],
        drawn=drawn,
        starts=cut.starts[order],
        stops=cut.stops[order],
        num_samples_before=running_sum(cut.num_samples[order])[offsets],
        dropped_before=running_sum(cut.dropped[order])[offsets],
    )


def with_windows(store: TokenStore, rows: BlockRows, width: int) -> BlockRows:
    """The same rows, their samples seen through windows of `width` tokens."""
    lengths = store.lengths[rows.samples].astype(np.int64)
    counts = -(-lengths // width)
    owner = np.repeat(np.arange(len(counts)), counts)
    starts = (np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]) * width
    stops = np.minimum(starts + width, lengths[owner])
    return BlockRows(
        running_sum(counts)[rows.offsets],
        rows.samples[owner],
        rows.tokens_before,
        rows.supervised_before,
        stops - starts,
        rows.drawn,
        starts=starts,
        stops=stops,
        num_samples_before=rows.offsets,
    )
