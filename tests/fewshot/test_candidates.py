"""Rows of candidates: whole examples, the right answer always among them, drawn by hash alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from candidate_stores import Example, candidate_store, many_examples
from small_store import store_of_lengths

from ds_train.config.data import DataConfig
from ds_train.config.fewshot import LossesConfig
from ds_train.data.epochs import EpochBlocks
from ds_train.data.order import StepPlan
from ds_train.data.row_plan import RowPlan
from ds_train.data.store import TokenStore
from ds_train.errors import DataError
from ds_train.fewshot.candidates import (
    CandidateBlocks,
    check_candidates,
    describe_losses,
    most_candidates,
    num_gold_tokens,
)

DATA = DataConfig.model_validate({"train": [{"path": "x"}], "packing": False, "max_length": 64})


def plan_of(store: TokenStore, seed: int = 0, **losses: Any) -> RowPlan:
    inner = EpochBlocks(store, DATA, seed, [1.0] * (int(store.sources.max()) + 1))
    return RowPlan(CandidateBlocks(inner, store, LossesConfig(**losses), seed))


def check_row(store: TokenStore, row: np.ndarray, num_wrong: int) -> int:
    """A row is a part of one group, with its right answer; gives the group."""
    examples = store.examples
    assert examples is not None
    (group,) = np.unique(examples.group[row]).tolist()
    assert np.all(np.diff(row) > 0)
    assert examples.gold[row].sum() == 1
    assert len(row) == num_wrong + 1
    return int(group)


def test_every_answer_of_one_template_without_a_limit() -> None:
    store = candidate_store(many_examples(12, 4, num_templates=3))
    plan, seen = plan_of(store), []
    for index in range(12):
        group = check_row(store, plan.row(0, index), num_wrong=3)
        seen.append(group // 3)
    assert sorted(seen) == list(range(12))


def test_negatives_are_drawn_anew_each_epoch_and_all_come_in_turn() -> None:
    store = candidate_store(many_examples(30, 10))
    plan = plan_of(store, max_negatives=3)
    drawn: dict[int, set[int]] = {}
    for epoch in range(40):
        for index in range(30):
            row = plan.row(epoch, index)
            group = check_row(store, row, num_wrong=3)
            drawn.setdefault(group, set()).update(row.tolist())
    assert all(len(samples) == 10 for samples in drawn.values())
    first = {tuple(plan.row(0, index)) for index in range(30)}
    second = {tuple(plan.row(1, index)) for index in range(30)}
    assert not first & second


def test_each_wrong_answer_is_as_likely() -> None:
    store = candidate_store(many_examples(2000, 5))
    assert store.examples is not None
    plan = plan_of(store, max_negatives=2)
    rows = np.concatenate([plan.row(0, index) for index in range(2000)])
    wrong = rows[~store.examples.gold[rows]]
    shares = np.bincount(store.examples.choice[wrong]) / len(wrong)
    assert shares == pytest.approx([0.2] * 5, abs=0.03)


def test_a_row_depends_on_seed_epoch_and_example_alone() -> None:
    store = candidate_store(many_examples(20, 8))
    one, other = plan_of(store, max_negatives=2), plan_of(store, max_negatives=2)
    for epoch in (5, 0, 3):  # in any order
        for index in (7, 0):
            assert np.array_equal(one.row(epoch, index), other.row(epoch, index))
    elsewhere = plan_of(store, seed=1, max_negatives=2)
    assert any(
        not np.array_equal(one.row(0, index), elsewhere.row(0, index)) for index in range(20)
    )


def test_examples_with_few_answers_keep_all_of_them() -> None:
    short = [Example([[5, 6]], [[7], [8]], 1) for _ in range(3)]
    store = candidate_store([*short, *many_examples(3, 6)])
    plan = plan_of(store, max_negatives=3)
    sizes = sorted(len(plan.row(0, index)) for index in range(6))
    assert sizes == [2, 2, 2, 4, 4, 4]


def test_without_weight_on_wrong_answers_none_is_computed() -> None:
    store = candidate_store(many_examples(6, 5))
    plan = plan_of(store, unlikelihood=0.0, length_normalised=0.0)
    for index in range(6):
        check_row(store, plan.row(0, index), num_wrong=0)


def test_totals_count_what_is_computed_and_examples_as_samples() -> None:
    store = candidate_store(many_examples(9, 6))
    plan = plan_of(store, max_negatives=2)
    rows = [plan.row(0, index) for index in range(9)]
    before = plan.before(5)
    assert before.rows == before.samples == 5
    assert before.tokens == sum(int(store.lengths[row].sum()) for row in rows[:5])
    assert before.supervised == sum(int(store.supervised[row].sum()) for row in rows[:5])
    steps = StepPlan(plan, 4, num_train_epochs=1.0)
    assert sum(len(row) > 0 for row in steps.rows(2)) == 1  # 9 examples in steps of 4
    gold = sum(int(store.supervised[row[store.examples.gold[row]]].sum()) for row in rows[:4])
    assert num_gold_tokens(store, steps.rows(0)) == gold


def test_the_largest_micro_batch_is_said() -> None:
    store = candidate_store(many_examples(2, 6))
    assert most_candidates(LossesConfig(), store) == 6
    assert most_candidates(LossesConfig(max_negatives=9), store) == 6
    assert most_candidates(LossesConfig(unlikelihood=0, length_normalised=0), store) == 1
    said = describe_losses(LossesConfig(max_negatives=2), store, 4)
    assert "up to 3 of 6 answers" in said
    assert f"a micro-batch of 4 is up to 12 lines of up to {store.lengths.max()} tokens" in said


def test_data_without_answers_is_refused() -> None:
    with pytest.raises(DataError, match=r"fewshot\.losses: .* use format: classification"):
        check_candidates(store_of_lengths([3, 4]))
    check_candidates(candidate_store(many_examples(3, 2)))
