"""Pools: sizes and order against a sort by hand; ties; strata."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_train.config.curriculum import CurriculumConfig
from ds_train.curriculum.pool import Pool, difficulty_order, stratified

some_values = st.lists(
    st.floats(-(2.0**60), 2.0**60, width=32) | st.sampled_from([0.0, -0.0, 1.0, 2.0]),
    min_size=1,
    max_size=60,
)


def _pool(values: list[float], members: np.ndarray | None = None, **settings: Any) -> Pool:
    curriculum = CurriculumConfig.model_validate(settings)
    return Pool(members, len(values), curriculum, np.array(values, np.float32))


@given(some_values, st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_the_order_is_sorted_and_ties_follow_the_key(values: list[float], seed: int) -> None:
    array = np.array(values, np.float32)
    order = difficulty_order(array, len(array), seed)
    assert sorted(order.tolist()) == list(range(len(array)))
    assert np.array_equal(array[order], np.sort(array))


def test_ties_depend_on_the_seed_and_have_no_order_of_their_own() -> None:
    orders = {tuple(difficulty_order(None, 50, seed).tolist()) for seed in range(20)}
    assert len(orders) == 20
    first = np.array([difficulty_order(None, 1000, seed)[:10] for seed in range(200)])
    assert abs(first.mean() - 499.5) < 26  # 4 standard deviations
    assert not np.array_equal(difficulty_order(None, 50, 0, "a"), difficulty_order(None, 50, 0))


@given(some_values, st.floats(0.01, 1))
@settings(max_examples=80, deadline=None)
def test_a_pool_by_value_holds_what_is_below(values: list[float], competence: float) -> None:
    array = np.array(values, np.float32)
    low, high = float(array.min()), float(array.max())
    reach = competence * (high - low)
    easy = np.flatnonzero(array <= np.float32(low + reach)) if competence < 1 else range(len(array))
    hard = np.flatnonzero(array >= np.float32(high - reach)) if competence < 1 else easy
    for order, expected in (("easy_to_hard", easy), ("hard_to_easy", hard), ("random_pool", easy)):
        pool = _pool(values, order=order, normalise="value")
        size = pool.size(competence)
        assert size == len(expected) >= 1
        if order != "random_pool":
            assert sorted(pool.ids(np.arange(size)).tolist()) == list(expected)


@pytest.mark.parametrize(
    ("competence", "size"), [(0.1, 1), (0.3, 3), (0.31, 4), (0.7, 7), (0.999, 10), (1.0, 10)]
)
def test_a_pool_by_rank_rounds_up(competence: float, size: int) -> None:
    pool = _pool([float(i) for i in range(10)])
    assert pool.size(competence) == size
    pool.minimum = 5
    assert pool.size(competence) == max(5, size)
    pool.minimum = 99
    assert pool.size(competence) == 10


def test_a_group_holds_its_own_samples() -> None:
    members = np.array([7, 3, 9, 5])
    pool = _pool([4.0, 1.0, 3.0, 2.0], members)
    assert pool.ids(np.arange(4)).tolist() == [3, 5, 9, 7]
    assert pool.ids(np.arange(4)).dtype == np.int64
    whole = Pool(members, 4)
    assert whole.ids(np.array([2, 0])).tolist() == [9, 7] and whole.size(1.0) == 4


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 9, width=32)), min_size=1, max_size=50))
@settings(max_examples=60, deadline=None)
def test_every_stratum_has_the_same_share_of_every_pool(rows: list[tuple[int, float]]) -> None:
    strata, values = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], "f4")
    result = stratified(values, strata, 0)
    for stratum in set(strata.tolist()):
        own, of_own = values[strata == stratum], result[strata == stratum]
        size = len(own)
        assert sorted(of_own) == pytest.approx([(i + 0.5) / size for i in range(size)])
        assert np.array_equal(own[np.argsort(of_own)], np.sort(own))
        for competence in (0.25, 0.5):
            assert abs((of_own <= competence).sum() - competence * size) <= 1
