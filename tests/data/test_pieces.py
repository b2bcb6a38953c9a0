"""Samples cut into pieces: every label exactly once, and the numbers that were announced."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import make_store, store_of_lengths

from ds_train.config.data import DataConfig
from ds_train.data.batch import IGNORE, collate
from ds_train.data.epochs import BlockRows, Drawn, rows_of_samples
from ds_train.data.pieces import (
    Cut,
    cut_samples,
    row_parts,
    row_tokens,
    rows_of_pieces,
    with_windows,
)
from ds_train.data.store import TokenStore

NINE = make_store([list(range(10, 19))])
X = IGNORE
DRAWN = Drawn(0.0, 1.0, ())


def config(packing: bool, max_length: int = 16) -> DataConfig:
    return DataConfig.model_validate(
        {"train": [{"path": "x.jsonl"}], "packing": packing, "max_length": max_length}
    )


def spans(cut: Cut) -> list[tuple[int, int, int]]:
    columns = zip(cut.samples.tolist(), cut.starts.tolist(), cut.stops.tolist(), strict=True)
    return list(columns)


def all_rows(rows: BlockRows) -> list[np.ndarray]:
    return [rows.row(index) for index in range(rows.num_rows)]


def learned(store: TokenStore, rows: list[np.ndarray]) -> Counter[tuple[int, int]]:
    """How often each (input token, label) pair of single-use token ids is learned."""
    batch = collate(store, rows, pad_token_id=0)
    inputs, labels = batch.input_ids.flatten().tolist(), batch.labels.flatten().tolist()
    return Counter((one, label) for one, label in zip(inputs, labels, strict=True) if label != X)


def test_reshape_of_the_docstring() -> None:
    cut = cut_samples(NINE, np.array([0]), 4, "reshape")
    assert spans(cut) == [(0, 0, 4), (0, 3, 7), (0, 6, 9)]
    assert cut.supervised.tolist() == [3, 3, 2]  # 8 labels, each once
    assert cut.num_samples.tolist() == [1, 0, 0] and cut.dropped.tolist() == [0, 0, 0]
    rows = all_rows(rows_of_pieces(NINE, cut, np.arange(3), 4, config(False), DRAWN, 8))
    batch = collate(NINE, rows, pad_token_id=0)
    assert batch.input_ids[:, :4].tolist() == [[10, 11, 12, 13], [13, 14, 15, 16], [16, 17, 18, 0]]
    assert batch.labels[:, :4].tolist() == [[11, 12, 13, X], [14, 15, 16, X], [17, 18, X, X]]
    assert batch.sample_ids.tolist() == [0, 0, 0]


def test_truncate_of_the_docstring() -> None:
    cut = cut_samples(NINE, np.array([0, 0]), 4, "truncate")
    assert spans(cut) == [(0, 0, 4)] * 2
    assert cut.supervised.tolist() == [3, 3] and cut.dropped.tolist() == [5, 5]
    assert cut.num_samples.tolist() == [1, 1]


@pytest.mark.parametrize("flatten", [False, True])
def test_window_of_the_docstring(flatten: bool) -> None:
    whole = rows_of_samples(NINE, np.array([0]), config(False))
    rows = all_rows(with_windows(NINE, whole, 4))
    assert rows[0].tolist() == [[0, 0, 4], [0, 4, 8], [0, 8, 9]]
    batch = collate(NINE, rows, pad_token_id=0, flatten=flatten)
    assert batch.input_ids[0, :9].tolist() == list(range(10, 19))
    assert batch.labels[0, :9].tolist() == [11, 12, 13, 14, 15, 16, 17, 18, X]
    assert batch.position_ids is not None
    assert batch.position_ids[0, :9].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_one_window_is_the_row_as_it_always_was() -> None:
    store = make_store([[5, 6, 7], [8, 9]], [[0, 1, 1], [0, 1]])
    whole = rows_of_samples(store, np.array([0, 1]), config(True))
    plain = collate(store, all_rows(whole), pad_token_id=0)
    windows = collate(store, all_rows(with_windows(store, whole, 3)), pad_token_id=0)
    for name in ("input_ids", "labels", "position_ids"):
        assert getattr(plain, name).tolist() == getattr(windows, name).tolist()


def test_the_same_sample_twice_in_a_row_does_not_go_on() -> None:
    """[0, 9) and then [0, 9) of the same sample: the last token predicts nothing."""
    whole = rows_of_samples(NINE, np.array([0, 0]), config(True, 18))
    labels = collate(NINE, all_rows(with_windows(NINE, whole, 9)), pad_token_id=0).labels
    assert labels[0, 8] == X and labels[0, 17] == X


def test_pieces_that_teach_nothing_are_left_out_and_counted() -> None:
    """A prompt of six tokens and an answer of two, at a length of three."""
    store = make_store([[1, 2, 3, 4, 5, 6, 7, 8], [9, 10]], [[0] * 6 + [1, 1], [0, 1]])
    cut = cut_samples(store, np.array([0, 1]), 3, "reshape")
    assert spans(cut) == [(0, 4, 7), (0, 6, 8), (1, 0, 2)]
    assert cut.supervised.tolist() == [1, 1, 1]
    assert cut.num_samples.tolist() == [1, 0, 1] and cut.dropped.tolist() == [4, 0, 0]
    cut = cut_samples(store, np.array([0, 1, 0]), 3, "truncate")
    assert spans(cut) == [(1, 0, 2)]
    # whoever was left out is counted all the same, with a neighbour
    assert cut.num_samples.tolist() == [3] and cut.dropped.tolist() == [16]
    assert len(cut_samples(store, np.array([0]), 3, "truncate").samples) == 0


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(2, 16), min_size=1, max_size=12),
    width=st.integers(2, 16),
    packing=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_reshape_learns_every_label_once_and_says_how_many(
    lengths: list[int], width: int, packing: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ids, first = [], 1
    for length in lengths:  # every token has an id of its own
        ids.append(list(range(first, first + length)))
        first += length
    mask = [[0, *rng.integers(0, 2, length - 1).tolist()] for length in lengths]
    mask[0][-1] = 1
    store = make_store(ids, mask)
    samples = np.arange(len(lengths))
    expected = Counter(
        (one[i], one[i + 1])
        for one, flags in zip(ids, mask, strict=True)
        for i in range(len(one) - 1)
        if flags[i + 1]
    )
    cut = cut_samples(store, samples, width, "reshape")
    order = rng.permutation(len(cut.samples))
    block = rows_of_pieces(store, cut, order, width, config(packing), DRAWN, 4)
    rows = all_rows(block)
    assert learned(store, rows) == expected
    assert max(row_tokens(store, row) for row in rows) <= width
    for index, row in enumerate(rows):
        batch = collate(store, [row], pad_token_id=0)
        assert np.diff(block.supervised_before)[index] == batch.num_supervised
        assert np.diff(block.tokens_before)[index] == row_tokens(store, row)
    assert block.samples_before[-1] == len(lengths)
    kept = {(sample, token) for sample, start, stop in spans(cut) for token in range(start, stop)}
    assert block.dropped_before is not None
    assert block.dropped_before[-1] == sum(lengths) - len(kept)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(2, 16), min_size=1, max_size=12),
    width=st.integers(2, 16),
    packing=st.booleans(),
)
def test_truncation_and_windows_say_what_they_do(
    lengths: list[int], width: int, packing: bool
) -> None:
    store, samples = store_of_lengths(lengths), np.arange(len(lengths))
    cut = cut_samples(store, samples, width, "truncate")
    block = rows_of_pieces(store, cut, samples, width, config(packing), DRAWN, 4)
    assert block.tokens_before[-1] == sum(min(length, width) for length in lengths)
    assert block.supervised_before[-1] == sum(min(length, width) - 1 for length in lengths)
    assert block.dropped_before is not None
    assert block.dropped_before[-1] == sum(max(0, length - width) for length in lengths)
    whole = rows_of_samples(store, samples, config(packing))
    windows = with_windows(store, whole, width)
    assert windows.tokens_before.tolist() == whole.tokens_before.tolist()
    assert windows.samples_before.tolist() == whole.offsets.tolist()
    for index in range(whole.num_rows):
        plain = collate(store, [whole.row(index)], pad_token_id=0)
        seen = collate(store, [windows.row(index)], pad_token_id=0)
        assert seen.input_ids.tolist() == plain.input_ids.tolist()
        assert seen.labels.tolist() == plain.labels.tolist()
        assert seen.position_ids is not None
        real = seen.position_ids[0, : row_tokens(store, whole.row(index))]
        assert int(real.max()) < width


def test_samples_and_tokens_of_both_kinds() -> None:
    four = store_of_lengths([3, 3, 3, 4, 5])
    assert [one.tolist() for one in row_parts(four, np.array([3, 4]))] == [[3, 4], [4, 5]]
    pieces = np.array([[3, 0, 2], [3, 2, 3]])
    assert [one.tolist() for one in row_parts(four, pieces)] == [[3, 3], [2, 1]]
    empty = np.empty(0, np.int64)
    assert row_tokens(NINE, empty) == 0 and row_parts(NINE, empty)[0].size == 0


def test_rows_of_one_packed_block_hold_each_piece_once() -> None:
    store = store_of_lengths([16, 16, 5])
    cut = cut_samples(store, np.arange(3), 6, "reshape")
    block = rows_of_pieces(store, cut, np.arange(len(cut.samples)), 6, config(True), DRAWN, 8)
    found = [tuple(piece) for row in all_rows(block) for piece in row.tolist()]
    assert sorted(found) == sorted(spans(cut)) and len(set(found)) == len(found)
    assert all(before <= after for before, after in pairwise(block.samples_before))
