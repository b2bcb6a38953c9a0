"""What each rank was last known to do: one small file a rank, in the run folder.

Rank and host of a run that died are known from them, also where the ranks were on other hosts,
whose exit codes the launcher does not hand on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

State = Literal["running", "hung", "ended"]


@dataclass(frozen=True)
class RankNote:
    """A rank's last words, or where it was when it was last heard of."""

    rank: int
    world_size: int
    host: str
    pid: int
    state: State
    time: float
    """Seconds since 1970, of its host."""
    phase: str
    """What it was doing."""
    position: tuple[int, int, int]
    """Number of the phase, gates within it, marks after the last gate (marks.py)."""
    where: str = ""
    """Innermost line of its main thread, where it hangs."""
    code: int = 0
    """Exit code, where it has ended."""
    error: str = ""
    """Class of the exception that ended it."""
    text: str = ""
    """First line of its message."""
    errno: int = 0
    """Of an OSError."""
    was_asked: bool = False
    """It was asked to stop, so it was not the first to go."""


def note_path(folder: Path, rank: int) -> Path:
    """File of a rank's note."""
    return folder / f"rank-{rank:05d}.json"


def stacks_path(folder: Path, rank: int) -> Path:
    """File of the stacks of all threads of a rank; empty unless it hung."""
    return folder / f"rank-{rank:05d}.txt"


def write_note(folder: Path, note: RankNote) -> None:
    """In one move, and without waiting for the disk. What can't be written is left out."""
    path = note_path(folder, note.rank)
    new = path.with_name(f".{path.name}.new")
    with suppress(OSError):
        new.write_text(json.dumps(asdict(note)), encoding="utf-8")
        new.replace(path)


def read_notes(folder: Path, since: float = 0.0) -> dict[int, RankNote]:
    """Rank -> its note. Those whose files are older than `since` are of another launch."""
    notes: dict[int, RankNote] = {}
    for path in sorted(folder.glob("rank-*.json")):
        # a file may go while we read, or be of another version
        with suppress(OSError, ValueError, TypeError):
            if path.stat().st_mtime >= since:
                values = json.loads(path.read_text(encoding="utf-8"))
                note = RankNote(**{**values, "position": tuple(values["position"])})
                notes[note.rank] = note
    return notes


def has_stacks(folder: Path, rank: int) -> bool:
    """Whether the stacks of a rank were written."""
    try:
        return stacks_path(folder, rank).stat().st_size > 0
    except OSError:
        return False


def place_of(rank: int, notes: Mapping[int, RankNote], hosts: Mapping[int, str]) -> str:
    """`rank 1 (node-1)`; the host is left out where all ranks are on this machine."""
    named = hosts.get(rank)
    if named is None or named == "localhost":
        return f"rank {rank}"
    return f"rank {rank} ({named})"
