"""Hashes of inputs and answers: equal exactly where the tokens and their order are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from small_store import make_store

from ds_train.fewshot import hashes
from ds_train.fewshot.hashes import text_hashes

Sample = list[tuple[int, bool]]


@given(st.lists(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=5)))
def test_equal_where_the_chosen_tokens_are(samples: list[Sample]) -> None:
    samples = [*samples, [(1, False), (2, True)]]
    store = make_store(
        [[token for token, _ in one] for one in samples],
        [[int(flag) for _, flag in one] for one in samples],
    )
    for supervised in (True, False):
        found = text_hashes(store, np.arange(len(samples)), supervised=supervised)
        chosen = [tuple(token for token, flag in one if flag == supervised) for one in samples]
        for one, first in zip(found, chosen, strict=True):
            for other, second in zip(found, chosen, strict=True):
                assert (one == other) == (first == second)


def test_the_same_in_parts(monkeypatch) -> None:
    store = make_store([[number % 7 + 1, number % 5 + 1, 3] for number in range(50)])
    whole = text_hashes(store, np.arange(50), supervised=True)
    monkeypatch.setattr(hashes, "_AT_ONCE", 8)
    assert text_hashes(store, np.arange(50), supervised=True).tolist() == whole.tolist()
    assert text_hashes(store, np.array([7, 3]), supervised=True).tolist() == whole[[7, 3]].tolist()
