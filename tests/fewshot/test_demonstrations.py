"""Demonstrations: never the query, the same whatever else is asked, balanced, nearest last."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_train.config.shots import METHODS, Demonstrations, parse_demonstrations
from ds_train.errors import DataError
from ds_train.fewshot.demonstrations import Pool, Query, drop_from_front, make_chooser
from ds_train.fewshot.draws import Draws, document_key

INPUTS = [f"a film about {topic} and {other}" for topic in "abcdef" for other in "uvwxyz"]
CLASSES = ["good" if index % 3 else "bad" for index in range(len(INPUTS))]
POOL = Pool("task films", INPUTS, CLASSES)


def query_of(text: str) -> Query:
    return Query(text, document_key({"text": text}))


def vectors_for(pool: Pool, *queries: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Some vector for each text, the same for the same text."""

    def vector(text: str) -> np.ndarray:
        return np.random.default_rng(sum(map(ord, text))).normal(size=8).astype(np.float32)

    return np.stack([vector(text) for text in pool.inputs]), {q: vector(q) for q in queries}


@pytest.mark.parametrize("method", METHODS)
def test_the_query_is_never_its_own_demonstration(method: str) -> None:
    # the query stands in the pool twice
    pool = Pool("task films", [*INPUTS, INPUTS[0]], [*CLASSES, "good"])
    for index in range(6):
        text = INPUTS[index]
        choose = make_chooser(Demonstrations(method), pool, 0, vectors_for(pool, text))
        chosen = choose(query_of(text), 10)
        assert len(set(chosen)) == 10
        assert text not in {pool.inputs[one] for one in chosen}


@pytest.mark.parametrize("method", METHODS)
def test_all_but_the_query_can_be_shown(method: str) -> None:
    pool = Pool("task films", INPUTS[:7], CLASSES[:7])
    choose = make_chooser(Demonstrations(method), pool, 0, vectors_for(pool, INPUTS[2]))
    assert sorted(choose(query_of(INPUTS[2]), 6)) == [0, 1, 3, 4, 5, 6]
    with pytest.raises(DataError, match=r"7 shots, but there are 7 documents to choose from, 1 of"):
        choose(query_of(INPUTS[2]), 7)


@pytest.mark.parametrize("method", ["random", "balanced"])
def test_draws_depend_on_seed_and_document_only(method: str) -> None:
    first = make_chooser(Demonstrations(method), POOL, 0)
    queries = [query_of(f"new {index}") for index in range(20)]
    forward = [first(query, 4) for query in queries]
    backward = [make_chooser(Demonstrations(method), POOL, 0)(query, 4) for query in queries[::-1]]
    assert forward == backward[::-1]
    assert forward != [make_chooser(Demonstrations(method), POOL, 1)(query, 4) for query in queries]
    assert len({tuple(one) for one in forward}) == len(queries)


def test_fewer_random_shots_are_the_first_of_more() -> None:
    choose = make_chooser(Demonstrations("random"), POOL, 5)
    assert choose(query_of("q"), 8)[:3] == choose(query_of("q"), 3)


def test_draws_are_those_of_ever() -> None:
    # recorded once: a change would alter every published number
    choose = make_chooser(Demonstrations("random"), POOL, 1234)
    assert choose(query_of("a quiet film"), 4) == [24, 14, 32, 9]


@given(num=st.integers(0, 20), seed=st.integers(0, 5))
def test_balanced_takes_classes_in_turn(num: int, seed: int) -> None:
    chosen = make_chooser(Demonstrations("balanced"), POOL, seed)(query_of("q"), num)
    counts = Counter(CLASSES[index] for index in chosen)
    assert abs(counts["good"] - counts["bad"]) <= num % 2


def test_balanced_passes_over_a_class_that_has_run_out() -> None:
    pool = Pool("task films", INPUTS[:9], ["rare"] + ["common"] * 8)
    chosen = make_chooser(Demonstrations("balanced"), pool, 0)(query_of("q"), 6)
    assert 0 in chosen
    assert len(chosen) == 6


def test_balanced_favours_no_class_and_no_place() -> None:
    choose = make_chooser(Demonstrations("balanced"), POOL, 0)
    odd = [[CLASSES[one] for one in choose(query_of(f"q{i}"), 3)] for i in range(300)]
    majority = sum(names.count("good") == 2 for names in odd)
    assert 110 < majority < 190  # of 300 fair coins, five standard deviations to each side
    first = sum(names[0] == "good" for names in odd)
    assert 110 < first < 190


def test_bm25_puts_the_nearest_last() -> None:
    choose = make_chooser(Demonstrations("bm25"), POOL, 0)
    chosen = choose(query_of("a film about c, and also w"), 3)
    assert INPUTS[chosen[-1]] == "a film about c and w"


def test_ties_go_by_index() -> None:
    pool = Pool("task films", ["x y", "x z", "x v", "x w"], list("abab"))
    # equal scores: the lower index is nearer, which is last
    assert make_chooser(Demonstrations("bm25"), pool, 0)(query_of("x"), 3) == [2, 1, 0]


def test_knn_is_by_cosine_and_nearest_last() -> None:
    pool = Pool("task films", ["p", "q", "r", "s"], list("abab"))
    vectors = np.array([[1, 0], [5, 5], [0, 2], [-1, 0]], dtype=np.float32)
    found = {"ask": np.array([3, 1], dtype=np.float32)}
    choose = make_chooser(Demonstrations("knn"), pool, 0, (vectors, found))
    # cosines 0.949, 0.894, 0.316, -0.949
    assert choose(query_of("ask"), 3) == [2, 1, 0]


def test_fixed_shows_what_is_named_in_that_order() -> None:
    choose = make_chooser(parse_demonstrations("fixed:7, 2,5"), POOL, 0)
    assert choose(query_of("q"), 2) == [7, 2]
    assert choose(query_of(INPUTS[2]), 2) == [7, 5]
    assert make_chooser(parse_demonstrations("fixed"), POOL, 0)(query_of("q"), 3) == [0, 1, 2]
    with pytest.raises(DataError, match="4 shots, but 3 documents are named; name more, or ask"):
        choose(query_of("q"), 4)
    with pytest.raises(
        DataError, match=r"2 documents are named \(one of them is the query itself\)"
    ):
        choose(query_of(INPUTS[2]), 3)


def test_messages() -> None:
    with pytest.raises(DataError, match='all 3 documents have the class "x", so there is nothing'):
        make_chooser(Demonstrations("balanced"), Pool("task t", list("abc"), ["x"] * 3), 0)
    with pytest.raises(DataError, match="every document has an answer of its own"):
        make_chooser(Demonstrations("balanced"), Pool("task t", list("abc"), list("xyz")), 0)
    with pytest.raises(DataError, match=r"fixed:1,9: there is no document 9; the pool has 3, num"):
        make_chooser(parse_demonstrations("fixed:1,9"), Pool("task t", list("abc"), list("xyz")), 0)
    with pytest.raises(DataError, match=r"task films: 99 shots, but there are 36 documents"):
        make_chooser(Demonstrations("random"), POOL, 0)(query_of("q"), 99)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("randm", r"must be one of random, balanced.*Did you mean random\?"),
        ("nearest", r"Did you mean knn\?"),
        ("bm25:1,2", "documents are named with fixed only"),
        ("fixed:1,x", "by their numbers from 0"),
        ("fixed:1,1", "names a document twice"),
    ],
)
def test_unknown_names(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_demonstrations(text)


@given(length=st.integers(0, 12), room=st.integers(0, 12))
def test_whole_demonstrations_go_from_the_front(length: int, room: int) -> None:
    chosen = list(range(100, 100 + length))
    asked = []

    def fits(ends: object) -> bool:
        asked.append(len(ends))  # type: ignore[arg-type]
        return asked[-1] <= room

    kept = drop_from_front(chosen, fits)
    assert kept == chosen[max(0, length - room) :]
    assert len(asked) <= 6


def test_order_is_a_permutation_and_takes_no_array() -> None:
    for length in (0, 1, 2, 50):
        assert sorted(Draws(3, "test", "key").order(length)) == list(range(length))
    order = Draws(3, "test", "key").order(10**15)
    assert len({next(order) for _ in range(5)}) == 5


def test_every_order_of_three_is_as_likely() -> None:
    counts = Counter(tuple(Draws(0, "test", str(i)).order(3)) for i in range(3000))
    assert len(counts) == 6
    assert all(400 < count < 600 for count in counts.values())
