"""Parts: rows put together from parts of samples and single tokens, as episodes are.

Such a row is an array [n, 4], a part a line: sample, start, stop, role. A sample below 0 is no
sample but one token, of which it is -1 - id. One after another the parts make a document, whose
positions run on; a part with `BEGINS` in its role begins the next document.

A question 5 6 with its answer 7 (sample 0), a separator 9, and the question 5 8, whose answer 6
(sample 1) is learned::

    part             tokens     learned
    0  0 3 BEGINS    5 6 7      . . .
    -10 0 1 READ     9          .
    1  0 3 OWN       5 8 6      . . x      by the sample's own mask
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ds_train.data.mix import Ints
from ds_train.data.store import TokenStore

READ, OWN, ALL = 0, 1, 2
"""Learned from: nothing; what the sample's mask says; every token."""
BEGINS = 4
"""Added to the role of a document's first part."""


def is_parts(row: Ints) -> bool:
    """Whether a row is made of parts (and not of samples or pieces of them)."""
    return row.ndim == 2 and row.shape[1] == 4


def token_part(token_id: int) -> int:
    """What stands for one token in the place of a sample."""
    return -1 - token_id


def part_documents(
    store: TokenStore, row: Ints
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """(ids int64 [length], bool [length] True where the token is learned) of each document."""
    ids: list[NDArray[np.int64]] = []
    learned: list[NDArray[np.bool_]] = []
    for sample, start, stop, role in row.tolist():
        if role & BEGINS and ids:
            yield _joined(ids, learned)
            ids, learned = [], []
        if sample < 0:
            ids.append(np.array([-1 - sample], dtype=np.int64))
        else:
            ids.append(store.tokens(sample)[start:stop].astype(np.int64))
        kind = role & ~BEGINS
        if kind == OWN:
            learned.append(store.mask(sample)[start:stop])
        else:
            learned.append(np.full(stop - start, kind == ALL))
    if ids:
        yield _joined(ids, learned)


def _joined(
    ids: list[NDArray[np.int64]], learned: list[NDArray[np.bool_]]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    mask = np.concatenate(learned)
    mask[:1] = False  # nothing predicts the first token
    return np.concatenate(ids), mask


def learned_samples(row: Ints) -> tuple[Ints, Ints]:
    """([n], [n]) samples of a row of parts that something is learned from, and their tokens.

    What is only read (demonstrations before a query) is left out.
    """
    roles = row[:, 3] & ~BEGINS
    samples: dict[int, int] = {}
    for sample in row[(roles != READ) & (row[:, 0] >= 0), 0].tolist():
        samples[sample] = 0
    for sample, start, stop, _ in row.tolist():
        if sample in samples:
            samples[sample] += stop - start
    names, tokens = list(samples), list(samples.values())
    return np.array(names, dtype=np.int64), np.array(tokens, dtype=np.int64)
