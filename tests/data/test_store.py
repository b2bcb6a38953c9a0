"""The store gives back what was written, whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from ds_train.data.store import TokenStore, store_fault
from ds_train.data.store_writer import SampleChunk, StoreWriter, sample_hash
from ds_train.errors import DataError


def _chunk(ids: list[list[int]], masks: list[list[int]], first: int = 0) -> SampleChunk:
    return SampleChunk.of(
        [np.array(one) for one in ids],
        [np.array(one, bool) for one in masks],
        [10 + np.array(one) for one in ids],
        [0] * len(ids),
        range(first, first + len(ids)),
    )


def _write(folder: Path, vocab_size: int = 512) -> None:
    with StoreWriter(folder, vocab_size) as writer:
        writer.append(_chunk([[1, 5, 6], [1, 7]], [[1, 0, 1], [0, 1]]))
        writer.append(_chunk([], []))
        writer.append(_chunk([[1, 5, 6]], [[0, 0, 1]], first=2))
        writer.meta["note"] = "kept"


def test_samples_come_back_with_the_first_mask_cleared(tmp_path: Path) -> None:
    _write(tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    assert store.num_samples == 3 and store.num_tokens == 8 and store.num_supervised == 3
    assert store.lengths.tolist() == [3, 2, 3] and store.supervised.tolist() == [1, 1, 1]
    assert store.num_bytes.tolist() == [16, 17, 16]  # of supervised tokens: id + 10 each
    assert store.ordinals.tolist() == [0, 1, 2] and store.sources.tolist() == [0, 0, 0]
    assert store.tokens(1).tolist() == [1, 7] and store.tokens(2).tolist() == [1, 5, 6]
    assert store.mask(0).tolist() == [False, False, True] and store.mask(0).dtype == bool
    assert store.hashes[0] == store.hashes[2] != store.hashes[1]
    assert store.meta["note"] == "kept"


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65535, np.uint16), (65536, np.uint32)])
def test_width_of_ids_follows_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    _write(tmp_path / "store", vocab_size)
    assert TokenStore.open(tmp_path / "store").flat_tokens.dtype == dtype


def test_hash_does_not_depend_on_the_width_of_ids() -> None:
    ids, mask = np.array([1, 500, 3]), np.array([False, True, True])
    assert sample_hash(ids.astype(np.uint16), mask) == sample_hash(ids, mask)
    assert sample_hash(ids, mask) != sample_hash(ids, ~mask)


def test_select_is_a_view_in_the_order_given(tmp_path: Path) -> None:
    _write(tmp_path / "store")
    part = TokenStore.open(tmp_path / "store").select(np.array([2, 1]))
    assert part.num_samples == 2 and part.ordinals.tolist() == [2, 1]
    assert part.tokens(1).tolist() == [1, 7]
    assert part.select(np.array([1])).tokens(0).tolist() == [1, 7]
    assert part.select(np.zeros(0, np.int64)).num_tokens == 0


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), StoreWriter(tmp_path / "store", 10) as writer:
        writer.append(_chunk([[1, 2]], [[0, 1]]))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_wins_and_neither_fails(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", 10) as slow:
        slow.append(_chunk([[1, 2]], [[0, 1]]))
        _write(tmp_path / "store")
    assert TokenStore.open(tmp_path / "store").num_samples == 3
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_leftovers_of_killed_writers_go_after_a_day(tmp_path: Path) -> None:
    for name, age_seconds in ((".store.1-a", 90_000), (".store.2-b", 60), (".other.3-c", 90_000)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age_seconds,) * 2)
    _write(tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.3-c", ".store.2-b", "store"]


@pytest.mark.parametrize("name", ["meta.json", "tokens.bin", "lengths.bin"])
def test_a_missing_or_cut_file_is_noticed_and_rebuilt(tmp_path: Path, name: str) -> None:
    _write(tmp_path / "store")
    with (tmp_path / "store" / name).open("r+b") as file:
        file.truncate(3)
    assert store_fault(tmp_path / "store") is not None
    with pytest.raises(DataError, match="can't be used"):
        TokenStore.open(tmp_path / "store")
    _write(tmp_path / "store")
    assert store_fault(tmp_path / "store", checksums=True) is None
    (tmp_path / "store" / name).unlink()
    assert store_fault(tmp_path / "store") == f"{name} is missing"


def test_a_flipped_bit_is_seen_by_the_checksum_only(tmp_path: Path) -> None:
    _write(tmp_path / "store")
    path = tmp_path / "store" / "tokens.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    assert store_fault(tmp_path / "store") is None
    fault = store_fault(tmp_path / "store", checksums=True)
    assert fault == "tokens.bin does not match its checksum"
