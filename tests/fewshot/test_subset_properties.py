"""Properties of k-shot subsets over any rows: nested, disjoint, the same in any order of rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from small_store import store_of_lengths

from ds_train.data.examples import EXAMPLE_DTYPES, Examples
from ds_train.data.labelled import text_hash
from ds_train.data.store import TokenStore
from ds_train.errors import DataError
from ds_train.fewshot.subset import Subset, choose_subset

CLASSES = ["red", "green", "blue"]
Row = tuple[int, int, int]
"""Source, class, content."""
ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 40)), min_size=30, max_size=150
)


def store_of(rows: list[Row]) -> TokenStore:
    """A store with two templates of each row; equal rows have equal tokens."""
    rows = sorted(rows, key=lambda row: row[0])  # sources follow one another, rows stay as they are
    sources = np.repeat([row[0] for row in rows], 2).astype(np.int16)
    ordinals = np.concatenate(
        [np.repeat(np.arange(sum(row[0] == source for row in rows)), 2) for source in (0, 1)]
    )
    store = store_of_lengths([2] * len(sources), sources.tolist())
    content = [row[1] * 1000 + row[2] for row in rows]
    templates = np.tile([0, 1], len(rows))
    arrays = {name: np.zeros(len(sources), dtype) for name, dtype in EXAMPLE_DTYPES.items()}
    arrays |= {
        "templates": templates,
        "row_hashes": np.repeat(np.array(content, np.uint64), 2),
        "golds": np.ones(len(sources)),
        "answers": np.repeat(np.array([text_hash(CLASSES[row[1]]) for row in rows]), 2),
    }
    facts = {"choice_texts": CLASSES, "choice_labels": ["0", "1", "2"], "format": "classification"}
    return replace(
        store,
        ordinals=ordinals,
        hashes=(arrays["row_hashes"] * np.uint64(7) + templates.astype(np.uint64)),
        examples=Examples.of(arrays, sources, ordinals),
        meta={"sources": [facts, facts]},
    )


def choose(rows: list[Row], k: int, dev: bool, per: str, seed: int) -> Subset | None:
    """None where the rows are too few, or of one class."""
    subset = SimpleNamespace(k=k, seed=seed, per=per, dev=dev)
    config: Any = SimpleNamespace(fewshot=SimpleNamespace(subset=subset))
    try:
        return choose_subset(config, store_of(rows), ["a", "b"])
    except DataError:
        return None


def chosen(store: TokenStore | None) -> Counter[tuple[int, int]]:
    """(source, content) of each example, and how often it is there."""
    assert store is not None and store.examples is not None
    first = store.examples.starts[:-1]
    contents = store.examples.row_hash[first].tolist()
    return Counter(zip(store.sources[first].tolist(), contents, strict=True))


@given(
    ROWS,
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from(["class", "source"]),
    st.integers(0, 9),
    st.randoms(use_true_random=False),
)
def test_subsets(rows: list[Row], k: int, dev: bool, per: str, seed: int, draw: Any) -> None:
    subset = choose(rows, k, dev, per, seed)
    shuffled = list(rows)
    draw.shuffle(shuffled)
    again = choose(shuffled, k, dev, per, seed)
    different = Counter((source, kind if per == "class" else 0) for source, kind, _ in set(rows))
    if subset is None:
        assert again is None
        kinds = 3 if per == "class" else 1
        enough = [different[source, kind] for source, kind in different]
        full = len(different) == kinds * len({row[0] for row in rows})
        # of one source: too few of something, or a class without a row
        if len({row[0] for row in rows}) == 1:
            assert not full or min(enough) < k * (1 + dev)
        return
    assert again is not None
    assert chosen(again.train) == chosen(subset.train)
    assert again.facts["hash"] == subset.facts["hash"]
    train = chosen(subset.train)
    assert set(train.values()) == {1}
    kinds_of = Counter((s, c // 1000 if per == "class" else 0) for s, c in train)
    assert set(kinds_of.values()) == {k} and set(kinds_of) == set(different)
    assert subset.train.num_samples == 2 * len(train)  # both templates of each
    if dev:
        held = chosen(subset.dev)
        assert chosen(again.dev) == held and set(held.values()) == {1}
        assert not {content for _, content in held} & {content for _, content in train}
        assert Counter((s, c // 1000 if per == "class" else 0) for s, c in held) == kinds_of
    else:
        assert subset.dev is None
    larger = choose(rows, k + 1, dev, per, seed)
    if larger is not None:
        assert not train - chosen(larger.train)
