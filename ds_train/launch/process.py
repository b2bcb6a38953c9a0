"""Runs the launcher: passes Ctrl-C on to the ranks, leaves no process and no shared memory behind.

The launcher gets a session of its own, so that a Ctrl-C in the terminal reaches only us. We send
SIGTERM to the ranks, which save and exit; the launcher itself would kill them after 30 s.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ds_train.errors import RunFailed
from ds_train.launch.board import Board
from ds_train.launch.failure import Ended, Failure, find_failure
from ds_train.launch.guard import (
    PARENT_VARIABLE,
    describe_parent,
    die_with_parent,
    launcher_is_gone,
)
from ds_train.launch.members import ask_ranks_to_stop, end_session

SAVE_SECONDS = 900.0
"""How long ranks may take to save after Ctrl-C before everything is killed."""

EXIT_VARIABLE = "DS_TRAIN_EXIT_DIR"
"""Folder in which each local rank leaves its exit code."""

_STOPPED = "stopped"
"""File in that folder: the run was asked to stop by a signal, here or on another node."""
_OTHER_HOSTS_SECONDS = 30.0
_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0
"""Between two looks at the ranks' notes."""
_GONE_SECONDS = 60.0
"""A shared file system may show files for so long after they are gone."""


def run_launcher(
    command: Sequence[str],
    environment: dict[str, str] | None = None,
    *,
    port: int | None = None,
    is_local: bool = True,
    stop_file: Path | None = None,
    tell_stop: bool = False,
    board: Board | None = None,
    hang_seconds: float | None = None,
    on_refusal: Callable[[Failure], object] | None = None,
    say: Callable[[str], object] = print,
) -> int:
    """Run the launcher to its end; returns 0 (also when stopped and saved) or 2 (user's input).

    128 + signal is returned when it was stopped and could not save; with `tell_stop` also when a
    signal, on whichever node, stopped it before its end, so that a scheduler knows that there is
    more to do.

    Raises RunFailed when a rank ended otherwise. `port` names the shared memory to free;
    `stop_file` is what ranks on other hosts look for, where no signal of ours reaches them;
    `board` holds what the ranks note, and `hang_seconds` is for the message about a hang.
    `on_refusal` is told the cause of a 2, whose message the ranks have printed.
    """
    environment = dict(os.environ) if environment is None else dict(environment)
    with tempfile.TemporaryDirectory(prefix="ds-train-") as folder, caught_signals() as caught:
        environment |= {EXIT_VARIABLE: folder, PARENT_VARIABLE: describe_parent()}
        oom_kills = count_oom_kills()
        process = subprocess.Popen(
            list(command),
            env=environment,
            start_new_session=True,
            preexec_fn=_become_launcher,
        )
        by_itself = True
        try:
            by_itself = _wait(process, caught, stop_file, board, say)
        finally:
            if stop_file is not None and process.poll() is None:
                _end_other_hosts(process, board)
            end_session(process)
            if port is not None:
                remove_shared_memory(port)
            if stop_file is not None:
                stop_file.unlink(missing_ok=True)
        if caught and process.returncode != 0:
            return 128 + caught[0]  # killed, or stopped before there was anything to save
        code = process.returncode if by_itself else 1  # our own SIGKILL is not the cause
        if code == 0 and _ended_well(Path(folder) if is_local else None, board):
            if board is not None:
                board.clear()
            if tell_stop and Path(folder, _STOPPED).exists():
                return 128 + (caught[0] if caught else signal.SIGTERM)
            return 0
        now = count_oom_kills() if is_local else None
        num_kills = None if oom_kills is None or now is None else now - oom_kills
        failure = _failure(Ended(code, {}, {}, num_oom_kills=num_kills), board, hang_seconds)
        if code != 2:
            raise RunFailed(str(failure), failure)
        if on_refusal is not None:
            on_refusal(failure)
        return 2


def _become_launcher() -> None:
    """In the launcher before it is one.

    Slurm sends its signals to every process of a step: of SIGUSR1 the launcher knows nothing and
    would die, so it ignores it, while ranks, which inherit that, take it as the request to stop.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        die_with_parent()


def leave_exit_code(code: int) -> None:
    """Called by a rank at its end: the launcher's own exit code says nothing when it is killed."""
    _leave(f"rank-{os.environ.get('RANK', '0')}", str(code))


def leave_stop_mark() -> None:
    """Called by every rank of a run that was asked to stop by a signal, to whichever rank."""
    _leave(_STOPPED, "")


def _leave(name: str, text: str) -> None:
    folder = Path(os.environ.get(EXIT_VARIABLE, ""))
    if EXIT_VARIABLE in os.environ and folder.is_dir() and not launcher_is_gone():
        (folder / name).write_text(text)


def remove_shared_memory(port: int) -> None:
    """Free the buffers that DeepSpeed's CPU all-reduce leaves in /dev/shm, 66 MiB a rank."""
    pattern = f"deepspeed_allreduce_buffer_{os.getuid()}_*_{port}_*"
    for path in Path("/dev/shm").glob(pattern):
        path.unlink(missing_ok=True)


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Signals are collected instead of raising, until the launcher has ended."""
    caught: list[int] = []
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def catch(number: int, _: object) -> None:
        # a second Ctrl-C means more than the first; a scheduler may say SIGUSR1 in two ways
        if number != signal.SIGUSR1 or number not in caught:
            caught.append(number)

    before = {name: signal.signal(name, catch) for name in names}
    try:
        yield caught
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _wait(
    process: subprocess.Popen[bytes],
    caught: list[int],
    stop_file: Path | None,
    board: Board | None,
    say: Callable[[str], object],
) -> bool:
    """Until the launcher ends: the first signal asks the ranks to save, the second kills.

    Returns whether it has ended by itself. Once a rank has failed, what is left gets a limited
    time: over ssh the launcher waits for hosts that are gone, here for processes that hang.
    """
    deadline, patience = float("inf"), float("inf")
    looked = time.monotonic()
    while process.poll() is None:
        if board is not None and time.monotonic() - looked > _LOOK_SECONDS:
            looked = time.monotonic()
            if (seconds := board.patience_seconds()) is not None:
                patience = min(patience, looked + seconds)
        if time.monotonic() > patience:
            return False
        if caught and deadline == float("inf"):
            deadline = time.monotonic() + SAVE_SECONDS
            say("stopping: the ranks finish their step, save and exit (Ctrl-C again kills them)")
            if stop_file is None:
                ask_ranks_to_stop(process)
            else:
                stop_file.touch()
        if len(caught) > 1 or time.monotonic() > deadline:
            say("killing the run")
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _end_other_hosts(process: subprocess.Popen[bytes], board: Board | None) -> None:
    """Ask the ranks on all hosts to end, through the run folder; with them the launchers there end.

    Not by SIGTERM to the launcher, which would run `pkill -f` on every host: that ends all runs of
    this Python there, whoever they belong to.
    """
    if board is not None:
        board.end_ranks()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_OTHER_HOSTS_SECONDS)


def _failure(ended: Ended, board: Board | None, hang_seconds: float | None) -> Failure:
    """The cause, from how the launcher ended and what the ranks have noted."""
    return find_failure(ended if board is None else board.fill_in(ended, hang_seconds))


def _ended_well(exit_folder: Path | None, board: Board | None) -> bool:
    """Whether ranks came to their end: the launcher's front end says 0 also when that was killed.

    Here they leave their exit codes; on other hosts they take their notes away.
    """
    if exit_folder is not None:
        return any(exit_folder.glob("rank-*"))
    if board is None or board.world.per_node:
        return True
    deadline = time.monotonic() + _GONE_SECONDS
    while board.notes():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def count_oom_kills() -> int | None:
    """Processes that this machine's kernel has ended so far for want of memory."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None
