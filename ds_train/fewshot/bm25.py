"""BM25, the classic ranking of texts by shared words, without a dependency.

    score(q, d) = sum over the words t of q of  idf(t) f(t, d) (k1 + 1)
                                               -----------------------------------------
                                               f(t, d) + k1 (1 - b + b |d| / mean length)
    idf(t) = ln(1 + (N - n_t + 0.5) / (n_t + 0.5))

with f(t, d) how often t stands in d, n_t the number of documents with t, and N all of them
(Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009; the 1 in
the logarithm keeps frequent words above zero). A word that the query has twice counts twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_train.data.mix import Ints

K1 = 1.5
B = 0.75
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case."""
    return _WORD.findall(text.lower())


class Bm25:
    """An index of documents: for each word, who has it and what it adds to their scores."""

    def __init__(self, documents: Sequence[str], k1: float = K1, b: float = B) -> None:
        self.num_documents = len(documents)
        counts = [Counter(words(text)) for text in documents]
        lengths = np.array([count.total() for count in counts], dtype=np.float64)
        mean_length = float(lengths.mean()) if lengths.any() else 1.0
        places: dict[str, list[int]] = {}
        for index, count in enumerate(counts):
            for word in count:
                places.setdefault(word, []).append(index)
        self._postings: dict[str, tuple[Ints, NDArray[np.float64]]] = {}
        for word, found in places.items():
            ids = np.array(found, dtype=np.int64)
            often = np.array([counts[index][word] for index in found], dtype=np.float64)
            idf = np.log1p((len(documents) - len(ids) + 0.5) / (len(ids) + 0.5))
            damped = often + k1 * (1 - b + b * lengths[ids] / mean_length)
            self._postings[word] = ids, idf * often * (k1 + 1) / damped

    def scores(self, query: str) -> NDArray[np.float64]:
        """Score of every document [num_documents]; 0 where no word is shared."""
        found = [self._postings[word] for word in words(query) if word in self._postings]
        if not found:
            return np.zeros(self.num_documents)
        ids = np.concatenate([ids for ids, _ in found])
        added = np.concatenate([added for _, added in found])
        # added up in the order of the query's words, whatever the machine
        sums: NDArray[Any] = np.bincount(ids, weights=added, minlength=self.num_documents)
        return sums


def best(scores: NDArray[np.floating], num: int) -> list[int]:
    """The `num` highest scores, best first; of equal ones the lower index."""
    if num <= 0:
        return []
    if num < len(scores):
        # all that reach the num-th highest score, so that ties are decided by index alone
        limit = np.partition(scores, len(scores) - num)[len(scores) - num]
        candidates = np.flatnonzero(scores >= limit)
    else:
        candidates = np.arange(len(scores))
    order = np.argsort(-scores[candidates], kind="stable")[:num]
    return [int(index) for index in candidates[order]]
