"""Candidates as tensors: a line each, numbered by example, the same tokens whatever the layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from candidate_stores import Example, candidate_store, many_examples

from ds_train.data.batch import step_batches
from ds_train.data.candidate_batch import collate_candidates
from ds_train.ops.reference import IGNORE

TWO = [Example([[5, 6]], [[7], [8, 9], [10]], gold=1), Example([[11]], [[12], [13]], gold=0)]
NONE = np.empty(0, dtype=np.int64)


def test_worked_example() -> None:
    batch = collate_candidates(
        candidate_store(TWO), [np.array([0, 1, 2]), np.array([3, 4])], pad_token_id=0
    )
    assert batch.candidates is not None
    assert batch.input_ids[:, :4].tolist() == [
        [5, 6, 7, 0],
        [5, 6, 8, 9],
        [5, 6, 10, 0],
        [11, 12, 0, 0],
        [11, 13, 0, 0],
    ]
    learned = [[one for one in line if one != IGNORE] for line in batch.labels.tolist()]
    assert learned == [[7], [8, 9], [10], [12], [13]]
    assert batch.candidates.example.tolist() == [0, 0, 0, 1, 1]
    assert batch.candidates.gold.tolist() == [False, True, False, True, False]
    assert (batch.candidates.num_examples, batch.num_rows, batch.num_supervised) == (2, 2, 6)
    assert batch.sample_ids.tolist() == [0, 1, 2, 3, 4]


def test_empty_rows_have_no_line_beside_examples() -> None:
    batch = collate_candidates(candidate_store(TWO), [np.array([3, 4]), NONE], pad_token_id=0)
    assert batch.candidates is not None
    assert len(batch.input_ids) == 2 and batch.num_rows == 2
    assert batch.candidates.num_examples == 1


def test_nothing_but_empty_rows_is_a_line_of_padding() -> None:
    batch = collate_candidates(candidate_store(TWO), [NONE, NONE], pad_token_id=0)
    assert batch.candidates is not None
    assert batch.input_ids.shape[0] == 1 and batch.num_supervised == 0
    assert batch.candidates.example.tolist() == [-1]
    assert batch.candidates.num_examples == 0 and not batch.candidates.gold.any()


def test_lines_are_never_joined() -> None:
    rows = [np.array([0, 1, 2]), np.array([3, 4])]
    plain = collate_candidates(candidate_store(TWO), rows, pad_token_id=0)
    flat = collate_candidates(candidate_store(TWO), rows, pad_token_id=0, flatten=True)
    assert torch.equal(plain.input_ids, flat.input_ids)


@pytest.mark.parametrize(("dp_size", "micro"), [(1, 8), (2, 4), (2, 1), (4, 2)])
def test_every_example_goes_whole_to_one_rank(dp_size: int, micro: int) -> None:
    store = candidate_store(many_examples(8, 5))
    rows = [np.arange(5 * number, 5 * number + 5) for number in range(8)]
    seen = []
    for rank in range(dp_size):
        batches = step_batches(
            store,
            rows,
            rank=rank,
            dp_size=dp_size,
            micro_batch_size=micro,
            packing=False,
            pad_token_id=0,
            make=collate_candidates,
        )
        assert len(batches) == 8 // (dp_size * micro)
        for batch in batches:
            assert batch.candidates is not None
            assert batch.candidates.num_examples == micro == batch.num_rows
            for number in range(micro):
                samples = batch.sample_ids[batch.candidates.example.numpy() == number]
                assert samples.tolist() == rows[samples[0] // 5].tolist()
                seen.append(samples[0] // 5)
    assert sorted(seen) == list(range(8))
