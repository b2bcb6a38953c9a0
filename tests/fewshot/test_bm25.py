"""BM25 by hand, and the order among equals."""

from __future__ import annotations

import numpy as np
import pytest

from ds_train.fewshot.bm25 import Bm25, best, words


def test_scores_worked_by_hand() -> None:
    # N = 3 documents of 2, 3 and 4 words, mean length 3; k1 = 1.5, b = 0.75
    index = Bm25(["a b", "a a c", "b d d d"])
    idf_a = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))  # ln 1.6
    idf_d = np.log(1 + (3 - 1 + 0.5) / (1 + 0.5))  # ln 2.667
    expected = [
        idf_a * 1 * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 2 / 3)),  # 0.552945
        idf_a * 2 * 2.5 / (2 + 1.5 * (0.25 + 0.75 * 3 / 3)),  # 0.671434
        idf_d * 3 * 2.5 / (3 + 1.5 * (0.25 + 0.75 * 4 / 3)),  # 1.508968
    ]
    np.testing.assert_allclose(index.scores("a d"), expected, rtol=1e-14)
    np.testing.assert_allclose(expected, [0.552945, 0.671434, 1.508968], atol=1e-6)


def test_a_word_twice_in_the_query_counts_twice() -> None:
    index = Bm25(["a b", "a a c", "b d d d"])
    np.testing.assert_allclose(index.scores("A, a!"), 2 * index.scores("a"), rtol=1e-14)


@pytest.mark.parametrize("query", ["", "?!", "unknown words"])
def test_nothing_in_common_scores_zero(query: str) -> None:
    assert Bm25(["a b", "c"]).scores(query).tolist() == [0.0, 0.0]


def test_documents_without_words_are_no_fault() -> None:
    assert Bm25(["...", "!"]).scores("a").tolist() == [0.0, 0.0]


def test_words_are_letters_and_digits_of_any_script() -> None:
    assert words("Don't stop: Größe 12,5 東京!") == ["don", "t", "stop", "größe", "12", "5", "東京"]


def test_best_breaks_ties_by_index() -> None:
    scores = np.array([1.0, 3.0, 2.0, 3.0, 2.0, 2.0])
    assert best(scores, 4) == [1, 3, 2, 4]
    assert best(scores, 0) == []
    assert best(scores, 99) == [1, 3, 2, 4, 5, 0]
    assert best(np.zeros(5), 3) == [0, 1, 2]
