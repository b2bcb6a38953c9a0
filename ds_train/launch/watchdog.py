"""In every rank: ends a run that makes no progress, with the stacks of all threads of all ranks.

A thread looks every few seconds how old the last mark is (marks.py). When the main thread is
inside a collective of gloo or NCCL it holds no lock, so the thread runs; should C code hold the
interpreter's lock, a timer of faulthandler, which needs no lock, writes the stacks and ends the
process a little later. The first rank that gives up leaves a file for which the others look.

The same thread ends a rank whose launch is over, known by another name in the file `attempt`:
after a relaunch no rank of the one before may write into the run folder.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TextIO

from ds_train.errors import DsTrainError, RunFailed, reason
from ds_train.launch import marks
from ds_train.launch.connection import is_connection
from ds_train.launch.notes import RankNote, State, note_path, read_notes, stacks_path, write_note
from ds_train.paths import RunPaths

ATTEMPT_VARIABLE = "DS_TRAIN_ATTEMPT"
"""Name of the launch that a rank belongs to."""
ATTEMPT_FILE = "attempt"
HANG_FILE = "hang"

SETUP_SECONDS = 600.0
"""Before the second step things are compiled, loaded and tokenised: at least so long."""
_POLL_SECONDS = 5.0
_GRACE_SECONDS = 15.0
"""The thread comes first, if it can run, and has to write stacks and wait for the other ranks."""
_LAST_SECONDS = 60.0
"""What a rank that has failed has to end: libraries may hang then too."""


def collective_seconds(hang_seconds: float | None) -> float:
    """How long a collective may take: longer than a hang, whose stacks shall be written first."""
    return max(SETUP_SECONDS, hang_seconds or 0.0) + 600.0


class Watchdog:
    """The thread of one rank; `end` when the rank ends."""

    def __init__(self, folder: Path, rank: int, world_size: int, seconds: float | None) -> None:
        """Begin to watch; `seconds` without a mark are a hang, None: there is no such limit."""
        self._folder, self._seconds = folder, seconds
        self._poll = _POLL_SECONDS if seconds is None else min(_POLL_SECONDS, seconds / 8)
        self._attempt = os.environ.get(ATTEMPT_VARIABLE)
        self._note = RankNote(
            rank, world_size, socket.gethostname(), os.getpid(), "running", 0.0, "", (0, 0, 0)
        )
        self._main = threading.main_thread().ident or 0
        self._over = threading.Event()
        self._stacks: TextIO | None = None
        self._since = 0.0
        """When this rank began, by the clock of the run folder."""
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            self._stacks = stacks_path(folder, rank).open("w", encoding="utf-8")
            self._since = stacks_path(folder, rank).stat().st_mtime
        self._write("running")
        if seconds is not None:
            self._arm(max(seconds, SETUP_SECONDS))
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def end(self, error: BaseException | None = None, code: int = 0) -> None:
        """The rank ends: well, which leaves no trace, or with an error, which is noted."""
        self._over.set()
        self._thread.join(self._poll)
        if error is None:
            faulthandler.cancel_dump_traceback_later()
            for path in (f(self._folder, self._note.rank) for f in (note_path, stacks_path)):
                path.unlink(missing_ok=True)
            with suppress(OSError):
                self._folder.rmdir()  # by the last one, where nobody else has a file there
            return
        faulthandler.dump_traceback_later(_LAST_SECONDS, exit=True)  # to stderr
        lines = str(error).strip().splitlines() or [""]
        self._note = replace(
            self._note,
            code=code,
            error=type(error).__name__,
            text=lines[0][:500],
            errno=getattr(error, "errno", 0) or 0,
        )
        self._write("ended")

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._over.wait(self._poll):
            now = time.monotonic()
            if now - looked > 4 * self._poll + 1:
                marks.now.at = now  # the whole process was stopped and goes on
            looked = now
            if self._is_of_another_launch():
                os._exit(1)
            if self._seconds is not None:
                limit = self._seconds
                if marks.now.num_steps < 2:
                    limit = max(limit, SETUP_SECONDS)
                age = now - marks.now.at
                if age > limit or self._is_told():
                    self._give_up(age)
                self._arm(limit - age)
            if self._note.position != _position() or self._note.was_asked != marks.now.was_asked:
                self._write("running")

    def _arm(self, seconds: float) -> None:
        """For code that holds the interpreter's lock: this thread does not run then."""
        if self._stacks is not None:
            wait = max(0.0, seconds) + _GRACE_SECONDS
            faulthandler.dump_traceback_later(wait, file=self._stacks, exit=True)

    def _is_of_another_launch(self) -> bool:
        if self._attempt is None:
            return False
        try:
            return (self._folder / ATTEMPT_FILE).read_text().strip() != self._attempt
        except OSError:
            return False

    def _give_up(self, age: float) -> None:
        """Write the stacks, wait for those of the others, end the process."""
        rank = self._note.rank
        if self._is_first():
            told = f"rank {rank}: no progress for {age:.0f} s in {marks.now.phase}"
            print(f"{told}; the stacks of all ranks go to {self._folder}", file=sys.stderr)
        self._note = replace(self._note, where=innermost(self._main))
        if self._stacks is not None:
            with suppress(OSError):
                self._stacks.write(
                    f"rank {rank} of {self._note.world_size}, {self._note.host}, process "
                    f"{self._note.pid}: {marks.now.phase}, mark {marks.now.count}, {age:.0f} s "
                    "since it\n\n"
                )
                self._stacks.flush()
                faulthandler.dump_traceback(self._stacks, all_threads=True)
        self._write("hung")
        deadline = time.monotonic() + 2 * self._poll + 1
        while time.monotonic() < deadline:
            hung = [n for n in read_notes(self._folder).values() if n.state == "hung"]
            if len(hung) == self._note.world_size:
                break
            time.sleep(0.1)
        os._exit(1)  # the main thread can't be made to return

    def _is_told(self) -> bool:
        """Whether another rank of this launch has given up; an older file is of another launch."""
        try:
            return (self._folder / HANG_FILE).stat().st_mtime >= self._since
        except OSError:
            return False

    def _is_first(self) -> bool:
        told = self._is_told()
        with suppress(OSError):
            (self._folder / HANG_FILE).touch()
        return not told

    def _write(self, state: State) -> None:
        now = marks.now
        self._note = replace(
            self._note,
            state=state,
            time=time.time(),
            phase=now.phase,
            position=_position(),
            was_asked=now.was_asked,
        )
        write_note(self._folder, self._note)


@contextmanager
def watched(root: Path, hang_seconds: float | None) -> Iterator[None]:
    """This rank under watch, with its last words noted in the run folder `root`."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", 1))
    watchdog = Watchdog(RunPaths(root).ranks, rank, world_size, hang_seconds)
    try:
        yield
    except BaseException as error:
        code = error.exit_code if isinstance(error, DsTrainError) else 1
        watchdog.end(error, code)
        if is_connection(type(error).__name__, str(error)):  # a traceback says no more
            raise RunFailed(f"lost the others in {marks.now.phase}: {reason(error)}.") from None
        raise
    watchdog.end()


def _position() -> tuple[int, int, int]:
    return marks.now.number, marks.now.gates, marks.now.count


def innermost(thread: int) -> str:
    """Where a thread of this process is, and which of our lines brought it there."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    places = [_place(frame)]
    while (
        frame is not None and __package__.split(".")[0] not in Path(frame.f_code.co_filename).parts
    ):
        frame = frame.f_back
    if frame is not None:
        places.append(_place(frame))
    return ", from ".join(dict.fromkeys(places))


def _place(frame: FrameType) -> str:
    """`all_reduce (distributed_c10d.py, line 2821)`."""
    code = frame.f_code
    return f"{code.co_name} ({Path(code.co_filename).name}, line {frame.f_lineno})"
