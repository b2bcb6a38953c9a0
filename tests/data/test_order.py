"""Step t is a function of t: coverage, resume, epoch borders, and counts known beforehand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import store_of_lengths

from ds_train.config.data import DataConfig
from ds_train.config.train import TrainConfig
from ds_train.data.order import StepPlan
from ds_train.data.row_plan import RowPlan
from ds_train.errors import DataError


def _plan(lengths: list[int], packing: bool = True, seed: int = 0, weight: float = 1.0) -> RowPlan:
    config = DataConfig.model_validate(
        {"train": [{"path": "x.jsonl"}], "max_length": 16, "packing": packing}
    )
    return RowPlan.uniform(store_of_lengths(lengths), config, seed, [weight])


LENGTHS = [3, 9, 16, 1, 7, 7, 2, 5, 12, 4, 6]
some_lengths = st.lists(st.integers(1, 16), min_size=1, max_size=40)


@given(some_lengths, st.booleans(), st.integers(0, 3), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_an_epoch_of_steps_holds_each_sample_once(
    lengths: list[int], packing: bool, seed: int, batch: int
) -> None:
    plan = StepPlan(_plan(lengths, packing, seed), batch, num_train_epochs=2)
    config = TrainConfig(num_train_epochs=2)
    counts: Counter[int] = Counter()
    for step in range(plan.total_steps(config)):
        rows = plan.rows(step)
        assert len(rows) == batch
        assert all(sum(lengths[i] for i in row) <= 16 for row in rows)
        assert plan.num_tokens(step) == sum(lengths[i] for i in plan.sample_ids(step))
        assert plan.num_supervised(step) == sum(lengths[i] - 1 for i in plan.sample_ids(step))
        counts.update(plan.sample_ids(step).tolist())
    assert counts == dict.fromkeys(range(len(lengths)), 2)
    assert plan.epoch(plan.total_steps(config)) == 2.0
    assert plan.tokens_before(plan.total_steps(config)) == 2 * sum(lengths)


@given(st.permutations(range(12)))
@settings(max_examples=20, deadline=None)
def test_steps_may_be_asked_for_in_any_order(order: list[int]) -> None:
    straight = StepPlan(_plan(LENGTHS), 3)
    expected = [[row.tolist() for row in straight.rows(step)] for step in range(12)]
    other = StepPlan(_plan(LENGTHS), 3)
    for step in order:
        assert [row.tolist() for row in other.rows(step)] == expected[step]
        assert other.tokens_before(step) == straight.tokens_before(step)


def test_a_fresh_plan_resumes_where_another_stopped() -> None:
    running = StepPlan(_plan(LENGTHS), 4)
    for step in range(40):
        rows = [row.tolist() for row in running.rows(step)]
    fresh = StepPlan(_plan(LENGTHS), 4)
    assert [row.tolist() for row in fresh.rows(39)] == rows
    assert fresh.epoch(39) == running.epoch(39) > 10


def test_epochs_and_seeds_differ() -> None:
    plan = _plan(LENGTHS, packing=False)
    orders = {tuple(plan.block(epoch).samples.tolist()) for epoch in range(5)}
    orders.add(tuple(_plan(LENGTHS, packing=False, seed=1).block(0).samples.tolist()))
    assert len(orders) == 6


def test_a_step_reaches_across_the_border_of_epochs() -> None:
    plan = _plan(LENGTHS, packing=False)
    rows = StepPlan(plan, 8).rows(1)  # rows 8..15 of the stream, an epoch has 11
    assert [int(row[0]) for row in rows[:3]] == plan.block(0).samples[8:].tolist()
    assert [int(row[0]) for row in rows[3:]] == plan.block(1).samples[:5].tolist()


def test_the_last_step_of_an_epoch_limited_run_is_filled_with_empty_rows() -> None:
    plan = StepPlan(_plan(LENGTHS, packing=False), 8, num_train_epochs=1)
    assert plan.total_steps(TrainConfig(num_train_epochs=1)) == 2
    assert [len(row) for row in plan.rows(1)] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert plan.num_tokens(1) == sum(LENGTHS) - plan.num_tokens(0)


@pytest.mark.parametrize(
    ("epochs", "rows"), [(0.1, 2), (0.5, 6), (1, 11), (1.1, 13), (2.999, 33), (0.001, 1)]
)
def test_a_part_of_an_epoch_is_rounded_up_to_rows(epochs: float, rows: int) -> None:
    plan = StepPlan(_plan(LENGTHS, packing=False), 1, num_train_epochs=epochs)
    assert plan.total_steps(TrainConfig(num_train_epochs=epochs)) == rows


def test_ten_rows_and_a_tenth_is_eleven_not_twelve() -> None:
    plan = StepPlan(_plan([5] * 10, packing=False), 1, num_train_epochs=1.1)
    assert plan.total_steps(TrainConfig(num_train_epochs=1.1)) == 11


@given(st.integers(1, 3000), st.integers(1, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_max_tokens_is_reached_by_no_step_more_than_needed(
    max_tokens: int, batch: int, packing: bool
) -> None:
    plan = StepPlan(_plan(LENGTHS, packing), batch)
    steps = plan.total_steps(TrainConfig(max_tokens=max_tokens))
    assert plan.tokens_before(steps) >= max_tokens > plan.tokens_before(steps - 1)


def test_small_weights_leave_epochs_empty_and_lose_nothing() -> None:
    plan = _plan([4, 5, 6], packing=False, weight=0.2)
    assert [plan.num_rows(epoch) for epoch in range(5)] == [0, 1, 0, 1, 1]
    assert sorted(StepPlan(plan, 3).sample_ids(0).tolist()) == [0, 1, 2]


def test_max_steps_and_a_plan_for_other_epochs() -> None:
    plan = StepPlan(_plan(LENGTHS), 2)
    assert plan.total_steps(TrainConfig(max_steps=17)) == 17
    with pytest.raises(ValueError, match="another num_train_epochs"):
        plan.total_steps(TrainConfig(num_train_epochs=3))


def test_no_data_is_an_error_and_a_source_without_weight_a_defect() -> None:
    with pytest.raises(DataError, match=r"data\.train: no sample is left"):
        _plan([])
    config = DataConfig.model_validate({"train": [{"path": "x.jsonl"}]})
    with pytest.raises(ValueError, match="source 1 has no weight"):
        RowPlan.uniform(store_of_lengths([3, 3], sources=[0, 1]), config, 0, [1.0])


def test_a_million_samples_are_planned_in_seconds() -> None:
    generator = np.random.default_rng(0)
    store = store_of_lengths([1])
    lengths = generator.integers(5, 200, 1_000_000).astype(np.int32)
    many = type(store)(
        lengths=lengths,
        supervised=lengths // 2,
        num_bytes=lengths,
        sources=generator.integers(0, 3, 1_000_000).astype(np.int16),
        **{
            name: getattr(store, name)
            for name in ("hashes", "ordinals", "starts", "flat_tokens", "flat_mask", "meta")
        },
    )
    config = DataConfig.model_validate({"train": [{"path": "x.jsonl"}] * 3, "max_length": 2048})
    plan = StepPlan(RowPlan.uniform(many, config, 0, [1.0, 0.5, 2.0]), 64)
    assert plan.total_steps(TrainConfig(max_tokens=10**8)) > 700
