"""Writes a store of tokenised samples, chunk after chunk; what it consists of stands in store.py.

It is made in a temporary folder and published by one rename, so a reader sees a whole store or
none, and of several writers the first to rename wins.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ds_train.data.examples import EXAMPLE_DTYPES, SampleFacts
from ds_train.data.store import (
    META_NAME,
    SAMPLE_DTYPES,
    STORE_VERSION,
    cannot_write,
    remove_store,
    store_fault,
)


@dataclass(frozen=True, slots=True)
class SampleChunk:
    """Some samples as flat arrays: tokens, mask [num_tokens]; the others [num_samples]."""

    tokens: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray
    supervised: np.ndarray
    num_bytes: np.ndarray
    sources: np.ndarray
    hashes: np.ndarray
    ordinals: np.ndarray
    examples: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The arrays of EXAMPLE_DTYPES, where there are labelled examples."""

    @classmethod
    def of(
        cls,
        ids: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        num_bytes: Sequence[np.ndarray],
        sources: Sequence[int],
        ordinals: Sequence[int],
        examples: Sequence[SampleFacts] | None = None,
    ) -> SampleChunk:
        """Chunk of samples given one by one; the mask of each first token is cleared.

        num_bytes: of each token of each sample; those of supervised tokens are added up.
        examples: which example each sample renders, where the store keeps them.
        """
        for mask in masks:
            mask[:1] = False
        empty = [np.zeros(0, np.uint32)]
        pairs = zip(ids, masks, strict=True)
        return cls(
            tokens=np.concatenate([*empty, *ids]).astype(np.uint32),
            mask=np.concatenate([np.zeros(0, np.uint8), *masks]).astype(np.uint8),
            lengths=np.array([len(one) for one in ids], np.int32),
            supervised=np.array([np.count_nonzero(mask) for mask in masks], np.int32),
            num_bytes=np.array(
                [one[mask.astype(bool)].sum() for one, mask in zip(num_bytes, masks, strict=True)],
                np.int32,
            ),
            hashes=np.array([sample_hash(*pair) for pair in pairs], np.uint64),
            sources=np.array(sources, np.int16),
            ordinals=np.array(ordinals, np.int64),
            examples={} if examples is None else SampleFacts.arrays(examples),
        )


def sample_hash(ids: np.ndarray, mask: np.ndarray) -> int:
    """64-bit hash of one sample's content; the same on every machine and for every id width."""
    digest = hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=8)
    digest.update(mask.astype(np.uint8).tobytes())
    return int.from_bytes(digest.digest(), "little")


class StoreWriter:
    """Appends chunks to a store that appears at `folder` when the `with` block ends well."""

    def __init__(self, folder: Path, vocab_size: int, *, examples: bool = False) -> None:
        """`examples`: chunks bring the arrays of labelled examples."""
        self.folder = folder
        self.meta: dict[str, Any] = {}
        self._dtypes = {
            "tokens": "<u2" if vocab_size < 2**16 else "<u4",
            "mask": "|u1",
            **SAMPLE_DTYPES,
            **(EXAMPLE_DTYPES if examples else {}),
        }
        self._temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
        self._files: dict[str, BinaryIO] = {}
        self._digests = {name: hashlib.blake2b(digest_size=16) for name in self._dtypes}
        self._num_tokens = self._num_samples = 0

    def __enter__(self) -> StoreWriter:
        try:
            _remove_leftovers(self.folder)
            self._temporary.mkdir(parents=True)
            for name in self._dtypes:
                self._files[name] = (self._temporary / f"{name}.bin").open("wb")
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        return self

    def append(self, chunk: SampleChunk) -> None:
        """Writes a chunk; samples keep the order in which they come."""
        for name, dtype in self._dtypes.items():
            array = chunk.examples[name] if name in EXAMPLE_DTYPES else getattr(chunk, name)
            data = np.ascontiguousarray(array, dtype).tobytes()
            self._digests[name].update(data)
            try:
                self._files[name].write(data)
            except OSError as error:
                raise cannot_write(self.folder, error) from error
        self._num_tokens += len(chunk.tokens)
        self._num_samples += len(chunk.lengths)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            for file in self._files.values():
                file.close()
            if kind is None:
                self._publish()
        except OSError as failure:
            raise cannot_write(self.folder, failure) from failure
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _publish(self) -> None:
        """Writes meta.json, then renames; a whole store already there is left as it is."""
        files = {
            name: {
                "dtype": dtype,
                "num_bytes": (self._temporary / f"{name}.bin").stat().st_size,
                "blake2b": self._digests[name].hexdigest(),
            }
            for name, dtype in self._dtypes.items()
        }
        meta = {
            "version": STORE_VERSION,
            "num_samples": self._num_samples,
            "num_tokens": self._num_tokens,
            "files": files,
            **self.meta,
        }
        with (self._temporary / META_NAME).open("w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if store_fault(self.folder) is not None:
            remove_store(self.folder)
        try:
            self._temporary.rename(self.folder)
        except OSError:
            if store_fault(self.folder) is not None:
                raise


def _remove_leftovers(folder: Path) -> None:
    """Removes what writers of this store left when they were killed, more than a day ago."""
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - leftover.stat().st_mtime > 86_400:
            shutil.rmtree(leftover, ignore_errors=True)
