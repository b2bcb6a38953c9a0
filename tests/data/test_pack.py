"""Packed rows: the worked example, limits, nothing lost, and a fill worth having."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_train.data.pack import pack_rows, single_rows


def test_the_worked_example_of_the_docstring() -> None:
    offsets, samples = pack_rows(np.arange(5), np.array([4, 7, 3, 6, 2]), max_length=10)
    a, b, c, d, e = range(5)
    assert offsets.tolist() == [0, 2, 4, 5]
    assert samples.tolist() == [b, c, a, d, e]


@given(
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=80),
    window=st.integers(1, 90),
)
@settings(max_examples=150, deadline=None)
def test_rows_are_within_the_limit_and_nothing_is_lost(lengths: list[int], window: int) -> None:
    sizes = np.array(lengths, np.int32)
    offsets, samples = pack_rows(np.arange(len(sizes)), sizes, 16, window)
    assert sorted(samples.tolist()) == list(range(len(sizes)))
    rows = np.add.reduceat(sizes[samples], offsets[:-1])
    assert rows.max() <= 16 and offsets[-1] == len(sizes)
    # Best fit: were two rows of one window both at most half full, one would not exist.
    if window >= len(lengths):
        assert (rows <= 8).sum() <= 1


def one_by_one(lengths: list[int], max_length: int) -> list[list[int]]:
    """Best fit as it is defined: longest first, into the fullest row that still holds it."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        rooms = [max_length - sum(lengths[other] for other in row) for row in rows]
        fitting = [
            (room, row) for room, row in zip(rooms, rows, strict=True) if room >= lengths[index]
        ]
        if fitting:
            min(fitting, key=lambda pair: pair[0])[1].append(index)  # the first of equal ones
        else:
            rows.append([index])
    return [sorted(row) for row in sorted(rows, key=lambda row: row[0])]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60), limit=st.integers(30, 70))
@settings(max_examples=150, deadline=None)
def test_equal_lengths_are_placed_together_and_as_one_by_one(
    lengths: list[int], limit: int
) -> None:
    offsets, samples = pack_rows(np.arange(len(lengths)), np.array(lengths, np.int32), limit)
    rows = [part.tolist() for part in np.split(samples, offsets[1:-1])]
    assert rows == one_by_one(lengths, limit)


def test_no_sample_at_all() -> None:
    offsets, samples = pack_rows(np.arange(0), np.array([], np.int32), 16)
    assert offsets.tolist() == [0] and samples.size == 0


def test_a_sample_twice_in_an_epoch_is_packed_twice() -> None:
    offsets, samples = pack_rows(np.array([0, 1, 0]), np.array([5, 3]), 8)
    assert samples.tolist() == [0, 1, 0] and offsets.tolist() == [0, 2, 3]


def test_too_long_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="a sample of 17 tokens, max_length is 16"):
        pack_rows(np.arange(2), np.array([3, 17]), 16)


def test_without_packing_a_row_is_a_sample() -> None:
    offsets, samples = single_rows(np.array([2, 0, 1]))
    assert offsets.tolist() == [0, 1, 2, 3] and samples.tolist() == [2, 0, 1]


def test_fill_speed_and_no_order_by_length() -> None:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5, 1, 200_000), 5, 2048).astype(np.int32)
    begin = time.perf_counter()
    offsets, _ = pack_rows(np.arange(200_000), lengths, 2048)
    assert time.perf_counter() - begin < 2  # measured 0.1 s: 1M samples take 0.5 s
    assert lengths.sum() / (2048 * (len(offsets) - 1)) > 0.995
    # The length of a row's documents must not drift along a window, or steps would differ in kind.
    per_row = np.diff(offsets).astype(float)
    window_rows = per_row[: len(per_row) // 24 * 24].reshape(24, -1)
    thirds = [part.mean() for part in np.array_split(window_rows, 3, axis=1)]
    assert max(thirds) / min(thirds) < 1.1
