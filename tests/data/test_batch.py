"""Labels, positions and padding by hand; every row to exactly one rank, however they are split."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import make_store, store_of_lengths

from ds_train.data.batch import IGNORE, collate, eval_batches, share_of_rank, step_batches
from ds_train.data.loader import prefetch

P, X = 0, IGNORE
EMPTY = np.empty(0, np.int64)
# a: the last two tokens are supervised; b: the last; c: none
STORE = make_store([[5, 6, 7], [8, 9], [3, 4]], [[0, 1, 1], [0, 1], [0, 0]])


def test_the_worked_example_of_the_docstring() -> None:
    batch = collate(STORE, [np.array([0, 1]), np.array([2])], pad_token_id=P)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, P, P, P], [3, 4, P, P, P, P, P, P]]
    assert batch.labels.tolist() == [[6, 7, X, 9, X, X, X, X], [X] * 8]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5]]
    assert batch.sample_ids.tolist() == [0, 1, 2] and batch.num_rows == 2
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64


def test_flattened_documents_follow_one_another() -> None:
    batch = collate(STORE, [np.array([0, 1]), EMPTY, np.array([2])], pad_token_id=P, flatten=True)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 3, 4]]
    assert batch.labels.tolist() == [[6, 7, X, 9, X, X, X]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert batch.num_rows == 3


def test_empty_rows_are_padding_without_labels() -> None:
    padded = collate(STORE, [EMPTY, EMPTY], pad_token_id=P)
    assert padded.input_ids.tolist() == [[P] * 8] * 2
    assert (padded.labels == IGNORE).all()
    flat = collate(STORE, [EMPTY], pad_token_id=P, flatten=True)
    assert flat.input_ids.tolist() == [[P]] and flat.labels.tolist() == [[X]]
    assert flat.position_ids is not None and flat.position_ids.tolist() == [[0]]


def test_padding_stops_at_max_length_and_positions_can_be_left_out() -> None:
    store = store_of_lengths([9])
    assert collate(store, [np.array([0])], pad_token_id=P).input_ids.shape == (1, 16)
    assert collate(store, [np.array([0])], pad_token_id=P, max_length=10).input_ids.shape == (1, 10)
    batch = collate(store, [np.array([0])], pad_token_id=P, with_positions=False)
    assert batch.position_ids is None and batch.to("cpu").position_ids is None


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=20),
    split=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    packing=st.booleans(),
    flatten=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_any_split_trains_on_the_same_tokens(
    lengths: list[int], split: tuple[int, int, int], packing: bool, flatten: bool
) -> None:
    accumulation, dp_size, micro = split
    num_rows = accumulation * dp_size * micro
    store = store_of_lengths(lengths)
    rows = [np.array([i]) for i in range(len(lengths))][:num_rows]
    rows += [EMPTY] * (num_rows - len(rows))
    labels: Counter[int] = Counter()
    samples: Counter[int] = Counter()
    for rank in range(dp_size):
        batches = step_batches(
            store,
            rows,
            rank=rank,
            dp_size=dp_size,
            micro_batch_size=micro,
            packing=packing,
            pad_token_id=P,
            flatten=flatten,
        )
        assert [batch.num_rows for batch in batches] == [micro] * accumulation
        for batch in batches:
            labels.update(batch.labels[batch.labels != IGNORE].tolist())
            samples.update(batch.sample_ids.tolist())
    taken = range(min(num_rows, len(lengths)))
    assert samples == dict.fromkeys(taken, 1)
    assert labels == {i + 1: lengths[i] - 1 for i in taken if lengths[i] > 1}


def test_unpacked_rows_are_dealt_by_length() -> None:
    store = store_of_lengths([1, 8, 3, 7, 2, 6, 4, 5])
    rows = [np.array([i]) for i in range(8)]
    dealt = [
        share_of_rank(store, rows, rank=rank, dp_size=2, micro_batch_size=2, packing=False)
        for rank in range(2)
    ]
    sizes = [[[int(store.lengths[row[0]]) for row in micro] for micro in one] for one in dealt]
    assert sizes == [[[8, 6], [4, 2]], [[7, 5], [3, 1]]]


def test_rows_that_do_not_divide_are_filled_up_with_empty_ones() -> None:
    rows = [np.array([i]) for i in range(3)]
    for packing in (True, False):
        shares = [
            share_of_rank(STORE, rows, rank=rank, dp_size=2, micro_batch_size=1, packing=packing)
            for rank in range(2)
        ]
        assert [len(share) for share in shares] == [2, 2]
        dealt = [row.tolist() for share in shares for micro in share for row in micro]
        assert sorted(dealt) == [[], [0], [1], [2]]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("dp_size", [1, 2, 3])
def test_evaluation_sees_every_sample_once(packing: bool, dp_size: int) -> None:
    store = store_of_lengths([3, 9, 16, 1, 7, 7, 2, 5, 12, 4, 6])
    seen, counts = Counter(), set()
    for rank in range(dp_size):
        batches = list(
            eval_batches(
                store,
                rank=rank,
                dp_size=dp_size,
                micro_batch_size=2,
                max_length=16,
                packing=packing,
                pad_token_id=P,
            )
        )
        counts.add(len(batches))
        for batch in batches:
            seen.update(batch.sample_ids.tolist())
    assert seen == dict.fromkeys(range(11), 1) and len(counts) == 1


def test_evaluation_takes_the_first_rows() -> None:
    store = store_of_lengths([3, 9, 16, 1])
    batches = eval_batches(
        store,
        rank=0,
        dp_size=1,
        micro_batch_size=1,
        max_length=16,
        packing=False,
        pad_token_id=P,
        max_rows=2,
    )
    assert sorted(int(batch.sample_ids[0]) for batch in batches) == [0, 1]


def test_prefetch_keeps_the_order_and_raises_at_the_right_step() -> None:
    def build(step: int) -> list:
        if step == 3:
            raise OSError("disk gone")
        return [collate(STORE, [np.array([step % 3])], pad_token_id=P)]

    seen = []
    with pytest.raises(OSError, match="disk gone"):
        for step, batches in prefetch(range(10), build):
            seen.append((step, int(batches[0].sample_ids[0])))
    assert seen == [(0, 0), (1, 1), (2, 2)]


def test_prefetch_builds_no_further_than_its_depth_and_stops_when_left() -> None:
    built = []

    def build(step: int) -> list:
        built.append(step)
        return []

    stream = prefetch(range(1000), build, depth=2)
    assert next(stream) == (0, []) and next(stream) == (1, [])
    stream.close()
    assert len(built) <= 4
    assert [step for step, _ in prefetch(range(5), build)] == [0, 1, 2, 3, 4]
