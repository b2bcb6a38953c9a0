"""Tokenised samples in flat files, memory-mapped: what prepare writes once and every rank reads.

A store is a folder of raw arrays and `meta.json`, which is written last and holds each file's size
and checksum. store_writer.py makes it; a reader sees a whole store or none.

    tokens.bin      uint16 or uint32 [num_tokens]  ids of all samples, one after the other
    mask.bin        uint8  [num_tokens]            1 where the token is a supervised target
    lengths.bin     int32  [N]                     tokens of each sample
    supervised.bin  int32  [N]                     supervised tokens of each sample
    num_bytes.bin   int32  [N]                     UTF-8 bytes of the text of these
    sources.bin     int16  [N]                     index of the source
    hashes.bin      uint64 [N]                     content of the sample (ids and mask)
    ordinals.bin    int64  [N]                     row number in its source, from 0

A store of labelled examples has the arrays of data/examples.py beside these.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ds_train.data.examples import Examples
from ds_train.errors import DataError

STORE_VERSION = 2
META_NAME = "meta.json"
SAMPLE_DTYPES = {
    "lengths": "<i4",
    "supervised": "<i4",
    "num_bytes": "<i4",
    "sources": "<i2",
    "hashes": "<u8",
    "ordinals": "<i8",
}


def cannot_write(folder: Path, error: OSError) -> DataError:
    """The fault of a cache folder that can't be made or is full."""
    return DataError(
        f'data.cache_dir = "{folder.parent}": {error.strerror or error}; free some space or '
        "choose another folder with data.cache_dir or $DS_TRAIN_CACHE."
    )


def remove_store(folder: Path) -> None:
    """Removes a broken store; it is renamed first, so that no reader opens half of it."""
    doomed = folder.with_name(f".{folder.name}.broken-{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def store_fault(folder: Path, *, checksums: bool = False) -> str | None:
    """What is wrong with the store in `folder`, or None; `checksums` reads every byte."""
    try:
        meta = json.loads((folder / META_NAME).read_text(encoding="utf-8"))
        if meta["version"] != STORE_VERSION:
            return f"version {meta['version']}, not {STORE_VERSION}"
        for name, facts in meta["files"].items():
            path = folder / f"{name}.bin"
            if path.stat().st_size != facts["num_bytes"]:
                return f"{name}.bin has {path.stat().st_size:,} of {facts['num_bytes']:,} bytes"
            if checksums and _digest(path) != facts["blake2b"]:
                return f"{name}.bin does not match its checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{META_NAME} can't be read ({error})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class TokenStore:
    """Samples of a store, read-only: all of them, or those that `select` named."""

    lengths: np.ndarray
    """int32 [N]: tokens of each sample."""
    supervised: np.ndarray
    """int32 [N]: tokens of each sample that are supervised targets."""
    num_bytes: np.ndarray
    """int32 [N]: UTF-8 bytes of the text that these targets stand for."""
    sources: np.ndarray
    """int16 [N]: index of the source."""
    hashes: np.ndarray
    """uint64 [N]: content; equal samples have equal hashes."""
    ordinals: np.ndarray
    """int64 [N]: row number in the source, from 0; the pieces of a split row share it."""
    starts: np.ndarray
    """int64 [N]: where the sample begins in the flat arrays."""
    flat_tokens: np.ndarray
    """uint16 or uint32 [all tokens], memory-mapped."""
    flat_mask: np.ndarray
    """uint8 [all tokens], memory-mapped."""
    meta: Mapping[str, Any]
    """Contents of meta.json."""
    examples: Examples | None = None
    """Which samples render the same labelled example; None where each stands for itself."""

    @classmethod
    def open(cls, folder: Path | str) -> TokenStore:
        """Opens a whole store without reading its tokens; DataError when it is broken."""
        folder = Path(folder)
        if fault := store_fault(folder):
            raise DataError(
                f'data.cache_dir: tokenised data in "{folder}" can\'t be used: {fault}; '
                "remove the folder, then `ds-train data` makes it anew."
            )
        meta = json.loads((folder / META_NAME).read_text(encoding="utf-8"))
        flat = {
            name: _memory_map(folder / f"{name}.bin", facts["dtype"])
            for name, facts in meta["files"].items()
        }
        ends = np.cumsum(flat["lengths"], dtype=np.int64)
        labelled = "templates" in flat
        return cls(
            **{name: flat[name] for name in SAMPLE_DTYPES},
            starts=ends - flat["lengths"],
            flat_tokens=flat["tokens"],
            flat_mask=flat["mask"],
            meta=meta,
            examples=Examples.of(flat, flat["sources"], flat["ordinals"]) if labelled else None,
        )

    @property
    def num_samples(self) -> int:
        """Number of samples, N."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all samples together."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def num_supervised(self) -> int:
        """Supervised tokens of all samples together."""
        return int(self.supervised.sum(dtype=np.int64))

    def tokens(self, index: int) -> np.ndarray:
        """Ids of a sample: uint16 or uint32 [len], read-only."""
        start = self.starts[index]
        return self.flat_tokens[start : start + self.lengths[index]]

    def mask(self, index: int) -> np.ndarray:
        """bool [len], True where the token is a supervised target; the first is always False."""
        start = self.starts[index]
        return self.flat_mask[start : start + self.lengths[index]].view(bool)

    def select(self, indices: np.ndarray) -> TokenStore:
        """The same files with only these samples, in this order.

        Labelled examples stay what they are where the indices rise, with fewer samples each where
        some are left out; in any other order each sample stands for itself.
        """
        return TokenStore(
            **{name: getattr(self, name)[indices] for name in (*SAMPLE_DTYPES, "starts")},
            flat_tokens=self.flat_tokens,
            flat_mask=self.flat_mask,
            meta=self.meta,
            examples=None if self.examples is None else self.examples.select(indices),
        )

    def gold(self) -> TokenStore:
        """The right answers only, in every template; the store itself where there are no others."""
        if self.examples is None or self.examples.gold.all():
            return self
        return self.select(np.flatnonzero(self.examples.gold))

    def of_examples(self) -> TokenStore:
        """One sample an example: the right answer in the first template; itself where it has that.

        What is ordered by difficulty, drawn from pools and counted where examples are rendered.
        """
        if self.examples is None or not self.examples.has_renderings:
            return self
        first = self.examples.group_gold[self.examples.first_group[:-1]]
        return replace(self.select(first), examples=None)


def _memory_map(path: Path, dtype: str) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file can't be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")
