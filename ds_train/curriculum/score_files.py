"""Difficulties on disk: computed once, memory-mapped by every process that asks for them.

They lie in `difficulty/` beside the tokenised data that they belong to, each under a name that is
a hash of all it depends on (data, metric, the function's file, the model's weights)::

    NAME.f32     float32 [N], little-endian: difficulty of each training sample
    NAME.json    metric, checksum, how long it took; written last, so a file without it is none
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_train.data.store import cannot_write
from ds_train.locks import locked
from ds_train.paths import replace_text, sync_folder

SCORES_VERSION = 1
"""Raised whenever the same samples would get other values."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredScores:
    """One file of difficulties."""

    values: NDArray[np.float32]
    """float32 [N], read-only."""
    facts: dict[str, Any]
    """Contents of the JSON file."""
    path: Path


def open_stored(
    folder: Path, name: str, num_samples: int, say: Callable[[str], object]
) -> StoredScores | None:
    """The file `name`, or None where it is not there; one that is broken is not used, and said."""
    path, facts_path = folder / f"{name}.f32", folder / f"{name}.json"
    if not facts_path.is_file():
        return None
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        values = np.memmap(path, "<f4", mode="r")
        whole = len(values) == num_samples and checksum(values) == facts["blake2b"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"difficulty: {path} can't be read ({error}); made anew")
        return None
    if not whole:
        say(f"difficulty: {path} does not match its checksum; made anew")
        return None
    return StoredScores(values, facts, path)


def store(
    folder: Path, name: str, values: NDArray[np.float32], facts: dict[str, Any]
) -> StoredScores:
    """`write_scores` into the cache of tokenised data; DataError where that can't be written."""
    try:
        return write_scores(folder, name, values, facts)
    except OSError as error:
        raise cannot_write(folder.parent, error) from None


def write_scores(
    folder: Path, name: str, values: NDArray[np.float32], facts: dict[str, Any]
) -> StoredScores:
    """Write a file of difficulties in one move; OSError where that can't be done."""
    path = folder / f"{name}.f32"
    new = folder / f".{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    data = np.ascontiguousarray(values, "<f4")
    facts = {"version": SCORES_VERSION, "num_samples": len(data), **facts}
    facts["blake2b"] = checksum(data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            file.write(data.tobytes())
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_folder(folder)
        replace_text(folder / f"{name}.json", json.dumps(facts, indent=1) + "\n")
    finally:
        new.unlink(missing_ok=True)
    return StoredScores(np.memmap(path, "<f4", mode="r"), facts, path)


@contextmanager
def one_maker(folder: Path, name: str) -> Iterator[None]:
    """One process at a time makes the file `name`; the others wait for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder.parent, error) from None
    with locked(folder / f".{name}.lock"):
        yield


def checksum(values: NDArray[np.float32]) -> str:
    """Hash of the values to the bit; the same on every machine."""
    data = np.ascontiguousarray(values, "<f4")
    return hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()
