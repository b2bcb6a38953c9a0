"""Effective data transferred: read off the random arm's line, bounded where it ends, and fitted."""

from __future__ import annotations

import pytest

from ds_train.transfer.effective import Equivalent, equivalent_data, fit_power

RANDOM = {10.0: 4.0, 100.0: 3.0, 1000.0: 2.5}


@pytest.mark.parametrize(
    ("loss", "amount", "bound"),
    [
        (4.0, 10.0, ""),
        (3.0, 100.0, ""),
        (2.5, 1000.0, ""),
        (3.5, 10**1.5, ""),  # half way in the logarithm
        (2.75, 10**2.5, ""),
        (2.4, 1000.0, "more"),
        (4.1, 10.0, "less"),
    ],
)
def test_equivalent_data(loss: float, amount: float, bound: str) -> None:
    found = equivalent_data(loss, RANDOM)
    assert found.amount == pytest.approx(amount) and found.bound == bound
    assert found.transferred(5.0) == pytest.approx(amount - 5.0)


def test_one_size_gives_bounds_only() -> None:
    assert equivalent_data(1.0, {10.0: 2.0}) == Equivalent(10.0, "more")
    assert equivalent_data(3.0, {10.0: 2.0}) == Equivalent(10.0, "less")
    assert equivalent_data(2.0, {10.0: 2.0}) == Equivalent(10.0)


def test_the_first_crossing_counts_where_more_data_was_worse() -> None:
    found = equivalent_data(2.9, {10.0: 4.0, 100.0: 2.8, 1000.0: 3.0, 10_000.0: 2.0})
    assert 10.0 < found.amount < 100.0 and not found.bound


def test_a_flat_stretch() -> None:
    assert equivalent_data(3.0, {10.0: 3.0, 100.0: 3.0, 1000.0: 2.0}) == Equivalent(10.0)


def test_fit() -> None:
    fit = fit_power({x: 7.0 * x**0.4 for x in (1e3, 1e4, 1e5, 1e6)})
    assert fit is not None and fit.num_points == 4
    assert fit.k == pytest.approx(7.0) and fit.alpha == pytest.approx(0.4)
    assert fit.residual == pytest.approx(0.0, abs=1e-9)


def test_no_fit_of_two_points_or_of_what_is_not_above_zero() -> None:
    assert fit_power({1e3: 10.0, 1e4: 20.0}) is None
    assert fit_power({1e3: 10.0, 1e4: 20.0, 1e5: -5.0}) is None
