"""The ranks' notes as `ds-train train` sees them: made ready before a launch, read after it.

They lie in the run folder, which all hosts share.
"""

from __future__ import annotations

import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ds_train.launch.failure import Ended
from ds_train.launch.notes import RankNote, has_stacks, read_notes, stacks_path
from ds_train.launch.watchdog import ATTEMPT_FILE, ATTEMPT_VARIABLE
from ds_train.launch.world import World
from ds_train.paths import RunPaths

_ENDED = "ended"
_AFTER_HANG_SECONDS = 5.0
_AFTER_FAILURE_SECONDS = 40.0
"""DeepSpeed's launcher gives the other ranks of a host 30 s."""


@dataclass(frozen=True)
class Board:
    """The notes of one launch."""

    paths: RunPaths
    world: World
    since: float
    """When the launch began; older notes are of another one."""
    attempt: str
    """Its name; empty where other machines launch as well, and none of them can name it."""

    @classmethod
    def make_ready(cls, paths: RunPaths, world: World) -> Board:
        """Clear what an earlier launch has left, and name this one."""
        if world.per_node:
            return cls(paths, world, _now(paths.ranks), "")
        shutil.rmtree(paths.ranks, ignore_errors=True)
        board = cls(paths, world, 0.0, uuid.uuid4().hex)
        with suppress(OSError):  # a full disk: the run itself will say so
            paths.ranks.mkdir(parents=True, exist_ok=True)
            (paths.ranks / ATTEMPT_FILE).write_text(board.attempt)
        return board

    @property
    def variables(self) -> dict[str, str]:
        """What every rank must have."""
        return {ATTEMPT_VARIABLE: self.attempt} if self.attempt else {}

    @property
    def hosts(self) -> dict[int, str]:
        """Rank -> the host it was started on."""
        if self.world.per_node:
            return {rank: note.host for rank, note in self.notes().items()}
        names = (host for host, slots in self.world.slots.items() for _ in slots)
        return dict(enumerate(names))

    def notes(self) -> dict[int, RankNote]:
        """Rank -> its note."""
        return read_notes(self.paths.ranks, self.since)

    def patience_seconds(self) -> float | None:
        """How long the launcher may go on now: None while no rank has failed, and where the other
        hosts have launchers of their own.
        """
        if self.world.per_node:
            return None
        notes = self.notes().values()
        if all(note.state == "running" for note in notes):
            return None
        hung = any(note.state == "hung" for note in notes)
        return _AFTER_HANG_SECONDS if hung else _AFTER_FAILURE_SECONDS

    def end_ranks(self) -> None:
        """Ask ranks on all hosts to end at once; their watchdogs look for it."""
        with suppress(OSError):
            (self.paths.ranks / ATTEMPT_FILE).write_text(_ENDED)

    def hung_ranks(self) -> list[int]:
        """Ranks that have written their stacks."""
        ranks = self.paths.ranks
        return [r for r in range(self.world.world_size) if has_stacks(ranks, r)]

    def keep_stacks(self) -> Path | None:
        """Move the stacks where the next launch leaves them alone; their folder, None without."""
        ranks = self.hung_ranks()
        if not ranks or self.world.per_node:
            return self.paths.ranks if ranks else None
        number = 1
        while (folder := self.paths.hang / str(number)).exists():
            number += 1
        folder.mkdir(parents=True)
        for rank in ranks:
            source = stacks_path(self.paths.ranks, rank)
            source.replace(folder / source.name)
        return folder

    def fill_in(self, ended: Ended, hang_seconds: float | None) -> Ended:
        """What the ranks have noted, beside what the launcher's end says; keeps the stacks."""
        notes, hosts, hung = self.notes(), self.hosts, self.hung_ranks()
        return replace(
            ended,
            notes=notes,
            hosts=hosts,
            stacks=hung,
            stacks_folder=self.keep_stacks(),
            hang_seconds=hang_seconds,
        )

    def clear(self) -> None:
        """After a run that ended well."""
        if not self.world.per_node:
            shutil.rmtree(self.paths.ranks, ignore_errors=True)


def _now(folder: Path) -> float:
    """The time by the clock of a folder, which may be another machine's."""
    mark = folder / f".launched-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
        return mark.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        mark.unlink(missing_ok=True)
