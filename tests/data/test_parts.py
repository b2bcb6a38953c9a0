"""Rows of parts: the documents that they make, and what is learned of them."""

from __future__ import annotations

import numpy as np
from small_store import make_store

from ds_train.data.batch import IGNORE, collate
from ds_train.data.parts import (
    ALL,
    BEGINS,
    OWN,
    READ,
    is_parts,
    learned_samples,
    part_documents,
    token_part,
)
from ds_train.data.pieces import row_parts, row_tokens

STORE = make_store([[5, 6, 7], [5, 8, 6]], [[0, 0, 1], [0, 0, 1]])
DOCSTRING = np.array([[0, 0, 3, READ | BEGINS], [token_part(9), 0, 1, READ], [1, 0, 3, OWN]])
X = IGNORE


def test_row_of_the_docstring() -> None:
    (ids, learned), *rest = part_documents(STORE, DOCSTRING)
    assert not rest
    assert ids.tolist() == [5, 6, 7, 9, 5, 8, 6]
    assert learned.astype(int).tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert is_parts(DOCSTRING) and row_tokens(STORE, DOCSTRING) == 7


def test_positions_run_on_within_a_document_and_begin_anew_with_the_next() -> None:
    two = np.concatenate([DOCSTRING, [[1, 1, 3, ALL | BEGINS]]])
    batch = collate(STORE, [two], pad_token_id=0)
    assert batch.input_ids[0].tolist() == [5, 6, 7, 9, 5, 8, 6, 8, 6, *[0] * 7]
    assert batch.labels[0].tolist() == [X, X, X, X, X, 6, X, 6, X, *[X] * 7]
    assert batch.position_ids is not None
    assert batch.position_ids[0].tolist() == [*range(7), 0, 1, *range(7)]
    assert batch.num_supervised == 2


def test_flattened_rows_hold_the_same() -> None:
    batch = collate(STORE, [DOCSTRING, DOCSTRING], pad_token_id=0, flatten=True)
    assert batch.input_ids[0].tolist() == [5, 6, 7, 9, 5, 8, 6] * 2
    assert batch.labels[0].tolist() == [X, X, X, X, X, 6, X] * 2


def test_the_first_token_is_never_learned() -> None:
    (_, learned), *_ = part_documents(STORE, np.array([[0, 0, 3, ALL | BEGINS]]))
    assert learned.astype(int).tolist() == [0, 1, 1]


def test_what_is_only_read_is_not_reported_as_learned() -> None:
    samples, tokens = learned_samples(DOCSTRING)
    assert samples.tolist() == [1] and tokens.tolist() == [3]
    assert [one.tolist() for one in row_parts(STORE, DOCSTRING)] == [[1], [3]]
    batch = collate(STORE, [DOCSTRING, np.empty(0, np.int64)], pad_token_id=0)
    assert batch.sample_ids.tolist() == [1] and batch.sample_tokens.tolist() == [3]
