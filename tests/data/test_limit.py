"""A limit takes whole documents from the front of one order, so that smaller parts are nested."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_store import store_of_lengths

from ds_train.config.data import LimitConfig
from ds_train.data.limit import limited
from ds_train.data.store import TokenStore
from ds_train.errors import DataError

NAMES = ("target", "source")


def documents(num_documents: int, pieces: int = 3, source: int = 0) -> TokenStore:
    """Documents of so many pieces of 5 tokens (4 supervised, 8 bytes)."""
    num = num_documents * pieces
    store = store_of_lengths([5] * num, sources=[source] * num)
    hashes = np.random.default_rng(source).integers(0, 2**63, num).astype(np.uint64)
    return replace(store, ordinals=np.repeat(np.arange(num_documents), pieces), hashes=hashes)


def chosen(store: TokenStore, **limit: object) -> set[int]:
    part = limited(store, LimitConfig.model_validate(limit), NAMES)
    return set(part.hashes.tolist())


@pytest.mark.parametrize("size", [8, 80, 100, 240, 792])
def test_bytes_are_met_to_the_nearest_sample(size: int) -> None:
    part = limited(documents(33), LimitConfig(bytes=size), NAMES)
    assert abs(part.num_bytes.sum() - size) <= 4
    # all documents but the last one are whole
    counts = np.unique(part.ordinals, return_counts=True)[1]
    assert (counts != 3).sum() <= 1


def test_smaller_parts_lie_within_larger_ones_and_other_seeds_take_others() -> None:
    store = documents(50)
    ladder = [chosen(store, bytes=size) for size in (40, 160, 600)]
    assert ladder[0] < ladder[1] < ladder[2]
    assert chosen(store, bytes=160) != chosen(store, bytes=160, seed=1)
    assert chosen(store, samples=4) <= chosen(store, samples=9)


def test_the_order_of_the_documents_does_not_matter() -> None:
    store = documents(50)
    turned = store.select(np.arange(150).reshape(50, 3)[::-1].ravel())
    assert chosen(store, bytes=200) == chosen(turned, bytes=200)


def test_samples_are_whole_documents_in_the_store_s_order() -> None:
    part = limited(documents(50), LimitConfig(samples=7), NAMES)
    assert part.num_samples == 21 and (np.diff(part.ordinals) >= 0).all()


def test_other_sources_stay_whole() -> None:
    both = store_of_lengths([5] * 40, sources=[0] * 20 + [1] * 20)
    part = limited(both, LimitConfig(samples=3, sources=["target"]), NAMES)
    assert (part.sources == 0).sum() == 3 and (part.sources == 1).sum() == 20


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"bytes": 10_000}, "data.limit.bytes = 10,000: the training data has only 792 bytes"),
        ({"samples": 34}, "data.limit.samples = 34: the training data has only 33; lower it"),
        ({"samples": 1, "sources": ["trget"]}, 'no training source is called "trget"; there are'),
    ],
)
def test_faults(limit: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        chosen(documents(33), **limit)
