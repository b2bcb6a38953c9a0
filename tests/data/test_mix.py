"""Weights are passes over a source, exact over time; permutations are fixed for good."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_train.data.mix import epoch_samples, keyed_permutation


def test_permutation_is_the_same_for_ever() -> None:
    # Changing these digits changes the order of every run ever recorded.
    assert keyed_permutation(8, 0, "epoch", 0).tolist() == [3, 2, 6, 1, 7, 5, 0, 4]


def test_permutation_depends_on_every_part_of_its_key() -> None:
    keys = [(0, "epoch", 0), (1, "epoch", 0), (0, "pass", 0), (0, "epoch", 1), (0, "epoch", 0, 0)]
    seen = {tuple(keyed_permutation(50, seed, *rest)) for seed, *rest in keys}
    assert len(seen) == len(keys)


def test_every_place_is_equally_likely() -> None:
    first = Counter(int(keyed_permutation(4, seed, "epoch", 0)[0]) for seed in range(4000))
    assert all(880 < first[place] < 1120 for place in range(4))  # 1000 +- 4.4 standard deviations


@pytest.mark.parametrize("shuffle", [True, False])
def test_half_weight_takes_the_other_half_next(shuffle: bool) -> None:
    sources = np.zeros(10, np.int16)
    first, second, third = (epoch_samples(sources, [0.5], 7, e, shuffle) for e in range(3))
    assert len(first) == len(second) == 5
    assert sorted([*first, *second]) == list(range(10))
    assert (first.tolist() == third.tolist()) is not shuffle


def test_weight_two_takes_each_twice() -> None:
    counts = Counter(epoch_samples(np.zeros(9, np.int16), [2.0], 0, 3, True).tolist())
    assert counts == dict.fromkeys(range(9), 2)


def test_sources_are_mixed_and_unshuffled_ones_follow_one_another() -> None:
    sources = np.array([1, 0, 1, 0, 1, 0])
    assert epoch_samples(sources, [1.0, 1.0], 0, 0, False).tolist() == [1, 3, 5, 0, 2, 4]
    many = np.repeat([0, 1], 500)
    halves = many[epoch_samples(many, [1.0, 1.0], 0, 0, True)]
    assert 200 < halves[:500].sum() < 300


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    tenths=st.lists(st.integers(1, 35), min_size=3, max_size=3),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_ten_epochs_hold_each_sample_exactly_ten_times_its_weight(
    sizes: list[int], tenths: list[int], seed: int
) -> None:
    sources = np.repeat(np.arange(len(sizes)), sizes)
    weights = [number / 10 for number in tenths[: len(sizes)]]
    counts: Counter[int] = Counter()
    for epoch in range(10):
        counts.update(epoch_samples(sources, weights, seed, epoch, True).tolist())
    assert [counts[i] for i in range(len(sources))] == [tenths[s] for s in sources.tolist()]
