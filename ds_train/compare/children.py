"""Runs side by side: one process for each slot, started, watched and, on Ctrl-C, asked to save.

What a run does is a sequence of commands (train, evaluate), made by the caller; here it only
matters that each ends with code 0. Everything a command prints goes to the run's own log.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from ds_train.compare.arms import RunSpec
from ds_train.compare.devices import Slot
from ds_train.errors import DsTrainError
from ds_train.launch.guard import die_with_parent
from ds_train.launch.process import caught_signals

LOG = "log.txt"
"""What the commands of a run printed, in its folder."""

_POLL_SECONDS = 0.2
Commands = Callable[[RunSpec, Slot], Iterator[list[str]]]


@dataclass(frozen=True)
class Outcome:
    """How one run ended."""

    spec: RunSpec
    seconds: float
    fault: str | None
    """Why it failed; None when it is finished."""


@dataclass
class _Child:
    """A run that is going on."""

    spec: RunSpec
    slot: Slot
    commands: Iterator[list[str]]
    began: float = field(default_factory=time.monotonic)
    process: subprocess.Popen[bytes] | None = None


class Children:
    """Runs of a comparison, as many at once as there are slots."""

    def __init__(
        self, slots: Sequence[Slot], commands: Commands, ended: Callable[[Outcome], object]
    ) -> None:
        """`commands` yields what a run still needs; `ended` is told of each run that is over."""
        self._slots, self._commands, self._ended = list(slots), commands, ended
        self._running: list[_Child] = []
        self._waiting: list[RunSpec] = []

    def run(self, specs: Sequence[RunSpec], say: Callable[[str], object] = print) -> bool:
        """All runs to their end; False when a signal came: then the running ones have saved."""
        self._waiting = list(specs)
        asked = 0
        with caught_signals() as caught:
            while self._running or (self._waiting and not caught):
                if len(caught) > asked:
                    asked = len(caught)
                    say("stopping: the runs save and exit (Ctrl-C again kills them)")
                    self._signal_all()
                if not caught:
                    self._fill_slots()
                time.sleep(_POLL_SECONDS)
                for child in list(self._running):
                    self._look_after(child, stopping=bool(caught))
        return not caught

    def elapsed(self) -> list[float]:
        """Seconds since each run that goes on was started."""
        return [time.monotonic() - child.began for child in self._running]

    def _fill_slots(self) -> None:
        busy = [child.slot for child in self._running]
        free = [slot for slot in self._slots if not any(slot is other for other in busy)]
        ready = [spec for spec in self._waiting if spec.resolved() is not None]
        for slot, spec in zip(free, ready, strict=False):
            self._waiting.remove(spec)
            child = _Child(spec, slot, self._commands(spec, slot))
            self._running.append(child)
            self._go_on(child)
        if self._waiting and not self._running and not ready:
            for spec in self._waiting:
                why = f"takes its number of steps from {spec.reference}, which failed"
                self._ended(Outcome(spec, 0.0, why))
            self._waiting.clear()

    def _go_on(self, child: _Child) -> None:
        """Start the next command of a run, or end it."""
        try:
            command = next(child.commands)
        except StopIteration:
            self._end(child, None)
            return
        except (DsTrainError, OSError) as error:
            self._end(child, str(error))
            return
        log = child.spec.paths.root / LOG
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {shlex.join(command)}\n")
            file.flush()
            child.process = start_logged(command, file, child.slot.environment())

    def _look_after(self, child: _Child, *, stopping: bool) -> None:
        code = None if child.process is None else child.process.poll()
        if code is None:
            return
        if stopping:
            self._running.remove(child)
        elif code == 0:
            self._go_on(child)
        else:
            self._end(child, last_error(child.spec.paths.root / LOG) or f"exit code {code}")

    def _end(self, child: _Child, fault: str | None) -> None:
        self._running.remove(child)
        self._ended(Outcome(child.spec, time.monotonic() - child.began, fault))

    def _signal_all(self) -> None:
        for child in self._running:
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)


def start_logged(
    command: list[str], log: TextIO, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command that ends with us, and prints to a file; our environment where None."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C in the terminal reaches only us
        preexec_fn=die_with_parent if sys.platform == "linux" else None,
    )


def last_error(log: Path) -> str | None:
    """The last line that reports an error, without its prefix."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    last = max((i for i, line in enumerate(lines) if line.startswith("$ ")), default=0)
    found = [line for line in lines[last:] if line.startswith("error")]
    return found[-1].split(": ", 1)[-1] if found else None
