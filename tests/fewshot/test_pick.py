"""Draws without replacement: within their range, none twice, all equally likely."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ds_train.data.mix import keyed_words
from ds_train.fewshot.pick import pick, take_turns


def draw(num: int, k: int, low: int, high: int, avoid: tuple[int, int], seed: int) -> np.ndarray:
    words = keyed_words(num * k, seed, "test").reshape(num, k)
    full = np.full((num, k), 1)
    one = np.ones(num, np.int64)
    return pick(words, low * full, high * full, avoid[0] * one, avoid[1] * one)


@given(
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(0, 15),
    st.integers(1, 5),
    st.integers(0, 10_000),
)
def test_places_are_different_and_lie_outside_what_is_avoided(
    k: int, room: int, first: int, width: int, seed: int
) -> None:
    size = max(k, room) + width
    first = min(first, size - width)
    places = draw(8, k, 0, size, (first, first + width), seed)
    for row in places.tolist():
        assert len(set(row)) == k
        assert all(0 <= place < size and not first <= place < first + width for place in row)


def test_every_ordered_choice_is_equally_likely() -> None:
    """Two of the four places 0, 1, 3, 4: twelve ways, 24,000 draws; 4.4 standard deviations."""
    places = draw(24_000, 2, 0, 5, (2, 3), 1)
    counts = Counter(map(tuple, places.tolist()))
    assert len(counts) == 12
    assert all(abs(count - 2000) < 190 for count in counts.values())


def test_ranges_differ_from_draw_to_draw() -> None:
    words = keyed_words(4000 * 3, 0, "test").reshape(-1, 3)
    low, high = np.tile([0, 4, 0], (4000, 1)), np.tile([4, 8, 4], (4000, 1))
    one = np.ones(4000, np.int64)
    places = pick(words, low, high, 1 * one, 2 * one)
    assert set(places[:, 0].tolist()) == {0, 2, 3} == set(places[:, 2].tolist())
    assert set(places[:, 1].tolist()) == {4, 5, 6, 7}
    assert (places[:, 0] != places[:, 2]).all()


def test_classes_take_turns_as_long_as_they_last() -> None:
    """Classes of 1, 5 and 2: six draws take 1, 3 and 2 of them, whatever the order."""
    left = np.tile([1, 5, 2], (200, 1))
    turns = take_turns(0, "test", (), left, 6)
    assert {tuple(np.bincount(row, minlength=3).tolist()) for row in turns} == {(1, 3, 2)}
    assert len({tuple(row) for row in turns.tolist()}) > 20  # in any order


def test_no_class_has_its_second_turn_before_the_others() -> None:
    turns = take_turns(0, "test", (), np.full((100, 4), 9), 6)
    for row in turns:
        assert sorted(np.bincount(row, minlength=4).tolist()) == [1, 1, 2, 2]
    extra = Counter(c for row in turns for c in np.flatnonzero(np.bincount(row) == 2).tolist())
    assert all(30 < count < 70 for count in extra.values())  # nobody is always preferred


def test_the_first_queries_do_not_depend_on_the_rest() -> None:
    few = take_turns(3, "test", (1,), np.full((5, 3), 4), 4)
    many = take_turns(3, "test", (1,), np.full((50, 3), 4), 4)
    assert few.tolist() == many[:5].tolist()
