"""Checksums of a checkpoint's files, by which a damaged one is known before anything is read of it.

`SHA256SUMS` lies in the checkpoint's folder, in the format of the command of that name, so that
`sha256sum --check SHA256SUMS` says the same without us. Checkpoints from before there were
checksums have none, and count as whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ds_train.checkpoint.folder import latest_checkpoint
from ds_train.errors import CheckpointError, quoted
from ds_train.paths import RunPaths, replace_text

CHECKSUMS = "SHA256SUMS"
DAMAGED = "damaged-"
"""Begins the name of a checkpoint's folder that has been set aside."""
_THREADS = 8


def digest(path: Path) -> str:
    """SHA-256 of a file that is on disk already, as the disk has it.

    The kernel is asked to forget its copy first: what it wrote is not yet what can be read.
    """
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path, digests: Mapping[str, str]) -> None:
    """SHA256SUMS of a checkpoint, from {path inside the folder: digest}."""
    lines = [f"{digests[name]}  {name}\n" for name in sorted(digests)]
    replace_text(folder / CHECKSUMS, "".join(lines))


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if they are as they were written."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return None
    try:
        expected: dict[str, str] = {}
        for line in path.read_text().splitlines():
            value, name = line.split("  ", 1)
            expected[name] = value
    except (OSError, ValueError):
        return f"{CHECKSUMS} can't be read"
    with ThreadPoolExecutor(_THREADS) as pool:  # hashing lets other threads run
        faults = pool.map(lambda name: _fault(folder / name, name, expected[name]), expected)
        return next(filter(None, faults), None)


def _fault(path: Path, name: str, expected: str) -> str:
    try:
        found = digest(path)
    except OSError as error:
        return f"{name}: {error.strerror}"
    return "" if found == expected else f"{name} is not what was written (its SHA-256 differs)"


def refuse_damaged(folder: Path) -> None:
    """Raises CheckpointError if a checkpoint that is about to be read is damaged."""
    if (damage := find_damage(folder)) is not None:
        raise CheckpointError(
            f"{quoted(folder)} is damaged: {damage}. Choose another of this run with --checkpoint, "
            "or start the training command again, which goes on from the one before it."
        )


def set_aside_damaged(paths: RunPaths, say: Callable[[str], Any]) -> None:
    """Until the newest checkpoint is whole, rename it, so that the run goes on from one before.

    Nothing is removed. Several machines may do this at once.
    """
    while (folder := latest_checkpoint(paths)) is not None:
        if (damage := find_damage(folder)) is None:
            return
        aside = folder.with_name(DAMAGED + folder.name)
        number = 1
        while aside.exists():
            number += 1
            aside = folder.with_name(f"{DAMAGED}{folder.name}-{number}")
        try:
            folder.rename(aside)
        except FileNotFoundError:
            continue  # another machine has done it
        before = latest_checkpoint(paths)
        rest = f"goes on from {before.name}" if before is not None else "begins at step 0 again"
        if before is not None:
            replace_text(paths.checkpoints / "latest", before.name + "\n")
        say(f"checkpoint {folder.name} is damaged ({damage}): set aside as {aside.name}; {rest}")


def checksummed_files(folder: Path) -> list[str]:
    """Files of a checkpoint that no rank has digested yet: all but those below `state`."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.iterdir()
        if path.is_file() and path.name != CHECKSUMS
    )
