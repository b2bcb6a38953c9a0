"""Classes of labelled examples: the answers that all rows of a source share.

A classification source has the words of its labels; a multiple-choice source has classes only where
each of its rows offers the same answers.
"""

from __future__ import annotations

import numpy as np

from ds_train.data.labelled import text_hash
from ds_train.data.mix import Ints
from ds_train.data.store import TokenStore


def class_texts(store: TokenStore, source: int) -> list[str] | None:
    """Answers that all rows of a source share, in their order; None where it has no classes."""
    texts: list[str] | None = store.meta["sources"][source].get("choice_texts")
    return texts


def class_labels(store: TokenStore, source: int) -> list[str]:
    """What the data call the classes of a source, in the order of class_texts: `0` for `bad`."""
    labels: list[str] = store.meta["sources"][source]["choice_labels"]
    return labels


def example_classes(store: TokenStore) -> Ints:
    """int64 [num_examples]: index of each example's right answer in its source's class_texts.

    -1 where the source has no classes.

    Raises:
        ValueError: the store was made without labelled examples.
    """
    examples = store.examples
    if examples is None:
        raise ValueError("this store was made without labelled examples")
    gold = examples.group_gold[examples.first_group[:-1]]
    sources, found = store.sources[gold], np.full(len(gold), -1, np.int64)
    for source in np.unique(sources).tolist():
        places = {text_hash(text): i for i, text in enumerate(class_texts(store, source) or [])}
        members = np.flatnonzero(sources == source)
        found[members] = [
            places.get(hash_, -1) for hash_ in examples.answer[gold[members]].tolist()
        ]
    return found
