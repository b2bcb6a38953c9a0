"""Which labelled examples are shown before a query: random, balanced, BM25, nearest, fixed.

Every way of choosing is a function of the pool, the seed and the query alone. A document whose
input is the query's, letter for letter, is never shown: it would give the answer away. What is
most like the query stands last, next to it (Liu et al. 2022, "What Makes Good In-Context Examples
for GPT-3?", arXiv 2101.06804); where demonstrations have to go, whole ones go from the front.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ds_train.config.shots import Demonstrations
from ds_train.errors import DataError
from ds_train.fewshot.bm25 import Bm25, best
from ds_train.fewshot.draws import Draws

Vectors = NDArray[np.floating]


@dataclass(frozen=True)
class Pool:
    """The documents that may be shown [num_documents], in the order of their file."""

    name: str
    """as it stands in messages, e.g. `task g_mr`"""
    inputs: Sequence[str]
    """text of each without its answer"""
    classes: Sequence[str]
    """the answer of each, or whatever shall be balanced"""
    keys: Sequence[str] = ()
    """what each says as a whole (`document_key`), where inputs alone may not show who is who"""

    @cached_property
    def _places(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Where each input and each key stands."""
        found: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
        for texts, places in zip((self.inputs, self.keys), found, strict=True):
            for index, text in enumerate(texts):
                places.setdefault(text, []).append(index)
        return found

    def same(self, query: Query) -> set[int]:
        """Documents that are the query, or whose input is the query's."""
        inputs, keys = self._places
        return {*inputs.get(query.input, ()), *keys.get(query.key, ())}


@dataclass(frozen=True)
class Query:
    """The document that is asked about."""

    input: str
    """its text, made as those of the pool"""
    key: str
    """what it says as a whole: see `document_key`"""


class Chooser(Protocol):
    """A way of choosing demonstrations."""

    def __call__(self, query: Query, num: int) -> list[int]:
        """`num` documents of the pool in the order in which they are shown; none is the query.

        Raises:
            DataError: the pool has fewer.
        """
        ...


def make_chooser(
    how: Demonstrations,
    pool: Pool,
    seed: int,
    vectors: tuple[Vectors, Mapping[str, Vectors]] | None = None,
) -> Chooser:
    """The chooser of a name.

    Args:
        vectors: for `knn`: those of the pool [num_documents, d], and of each query's input [d].

    Raises:
        DataError: balanced without classes to balance; fixed documents that are not there.
    """
    if how.method == "balanced":
        return Balanced(pool, seed)
    if how.method == "bm25":
        return Similar(pool, by_words(pool))
    if how.method == "knn":
        assert vectors is not None, "knn needs the model's vectors"
        return Similar(pool, by_vectors(*vectors))
    if how.method == "fixed":
        return Fixed(pool, how.indices)
    return Random(pool, seed)


class Random:
    """Any documents of the pool; with more of them, the first ones stay the same."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self.pool, self.seed = pool, seed

    def __call__(self, query: Query, num: int) -> list[int]:
        _check_enough(self.pool, query, num)
        same = self.pool.same(query)
        order = Draws(self.seed, "random demonstrations", query.key).order(len(self.pool.inputs))
        return list(islice((index for index in order if index not in same), num))


class Balanced:
    """One document of each class in turn, until there are enough; shown in random order.

    Classes take their turns in random order, so that over many queries none gets more than the
    others where `num` is not a multiple of their number. A class that runs out is passed over.
    """

    def __init__(self, pool: Pool, seed: int) -> None:
        self.pool, self.seed = pool, seed
        counts = Counter(pool.classes)
        if len(counts) == 1:
            raise DataError(
                f"{pool.name}: demonstrations = balanced: all {len(pool.classes):,} documents "
                f'have the class "{pool.classes[0]}", so there is nothing to balance; take random.'
            )
        if len(counts) > 1 and max(counts.values()) == 1:
            raise DataError(
                f"{pool.name}: demonstrations = balanced: every document has an answer of its "
                "own, so there are no classes to balance; take random, bm25 or knn."
            )
        self.members: dict[str, list[int]] = {name: [] for name in sorted(counts)}
        for index, name in enumerate(pool.classes):
            self.members[name].append(index)

    def __call__(self, query: Query, num: int) -> list[int]:
        _check_enough(self.pool, query, num)
        same = self.pool.same(query)
        draws = Draws(self.seed, "balanced demonstrations", query.key)
        chosen = list(islice(self._in_turn(draws, same), num))
        return draws.shuffled(chosen)

    def _in_turn(self, draws: Draws, same: set[int]) -> Iterator[int]:
        turns = []
        for name in draws.shuffled(list(self.members)):
            left = [index for index in self.members[name] if index not in same]
            turns.append(iter(draws.shuffled(left)))
        while turns:
            alive = []
            for turn in turns:
                if (index := next(turn, None)) is not None:
                    alive.append(turn)
                    yield index
            turns = alive


class Similar:
    """The documents with the highest scores, the best one last; of equal ones the lower index."""

    def __init__(self, pool: Pool, scores: Callable[[Query], Vectors]) -> None:
        self.pool, self.scores = pool, scores

    def __call__(self, query: Query, num: int) -> list[int]:
        _check_enough(self.pool, query, num)
        same = self.pool.same(query)
        ranked = best(self.scores(query), num + len(same))
        return [index for index in ranked if index not in same][:num][::-1]


def by_words(pool: Pool) -> Callable[[Query], Vectors]:
    """BM25 of the query's input against those of the pool."""
    index = Bm25(pool.inputs)
    return lambda query: index.scores(query.input)


def by_vectors(pool: Vectors, queries: Mapping[str, Vectors]) -> Callable[[Query], Vectors]:
    """Cosine of the query's vector [d] and those of the pool [num_documents, d], in float64.

    Rounded to 12 digits, so that two documents with the same text tie whatever the BLAS does.
    """
    rows = _unit(pool.astype(np.float64))
    return lambda query: np.round(rows @ _unit(queries[query.input].astype(np.float64)), 12)


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = vectors / np.where(lengths == 0, 1, lengths)
    return unit


class Fixed:
    """The same documents before every query: those that are named, else the first ones."""

    def __init__(self, pool: Pool, indices: Sequence[int] = ()) -> None:
        size = len(pool.inputs)
        if beyond := [index for index in indices if index >= size]:
            raise DataError(
                f"{pool.name}: demonstrations = fixed:{','.join(map(str, indices))}: there is no "
                f"document {beyond[0]}; the pool has {size:,}, numbered from 0 to {size - 1}."
            )
        self.pool, self.named = pool, list(indices)

    def __call__(self, query: Query, num: int) -> list[int]:
        _check_enough(self.pool, query, num)
        same = self.pool.same(query)
        listed = self.named or range(len(self.pool.inputs))
        left = list(islice((index for index in listed if index not in same), num))
        if len(left) < num:
            why = " (one of them is the query itself)" if len(left) < len(self.named) else ""
            raise DataError(
                f"{self.pool.name}: demonstrations = fixed: {num} shots, but {len(left)} documents "
                f"are named{why}; name more, or ask for fewer shots."
            )
        return left


def _check_enough(pool: Pool, query: Query, num: int) -> None:
    size, num_same = len(pool.inputs), len(pool.same(query))
    if num <= size - num_same:
        return
    without = f", {num_same} of them the query itself" if num_same else ""
    raise DataError(
        f"{pool.name}: {num:,} shots, but there are {size:,} documents to choose from{without}; "
        f"ask for at most {size - num_same:,}."
    )


def drop_from_front(chosen: Sequence[int], fits: Callable[[Sequence[int]], bool]) -> list[int]:
    """The longest end of `chosen` with which the context fits; whole demonstrations go.

    `fits` is asked about as few ends as possible, since each answer costs a tokenisation; it may
    be False for none at all, when the query alone is too long.
    """
    if fits(chosen):
        return list(chosen)
    too_many, good = len(chosen), 0
    while too_many - good > 1:
        middle = (too_many + good) // 2
        if fits(chosen[len(chosen) - middle :]):
            good = middle
        else:
            too_many = middle
    return list(chosen[len(chosen) - good :])
