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

import psutil

from ds_train.errors import RunFailed
from ds_train.launch.guard import (
    PARENT_VARIABLE,
    describe_parent,
    die_with_parent,
    launcher_is_gone,
)

SAVE_SECONDS = 900.0
"""How long ranks may take to save after Ctrl-C before everything is killed."""

EXIT_VARIABLE = "DS_TRAIN_EXIT_DIR"
"""Folder in which each local rank leaves its exit code."""

_LEFTOVER_SECONDS = 30.0
_POLL_SECONDS = 0.2


def run_launcher(
    command: Sequence[str],
    environment: dict[str, str] | None = None,
    *,
    port: int | None = None,
    is_local: bool = True,
    stop_file: Path | None = None,
    tell_stop: bool = False,
    say: Callable[[str], object] = print,
) -> int:
    """Run the launcher to its end; returns 0 (also when stopped and saved) or 2 (user's input).

    128 + signal is returned when it was stopped and could not save; with `tell_stop` always when it
    was stopped, so that a scheduler knows that the run is not complete.

    Raises RunFailed when a rank ended otherwise. `port` names the shared memory to free;
    `stop_file` is what ranks on other hosts look for, where no signal of ours reaches them.
    """
    environment = dict(os.environ) if environment is None else dict(environment)
    with tempfile.TemporaryDirectory(prefix="ds-train-") as folder, caught_signals() as caught:
        environment |= {EXIT_VARIABLE: folder, PARENT_VARIABLE: describe_parent()}
        process = subprocess.Popen(
            list(command),
            env=environment,
            start_new_session=True,
            preexec_fn=_become_launcher,
        )
        try:
            _wait(process, caught, stop_file, say)
        finally:
            if stop_file is not None:
                _end_other_hosts(process)
            _end_session(process)
            if port is not None:
                remove_shared_memory(port)
            if stop_file is not None:
                stop_file.unlink(missing_ok=True)
        if caught and (process.returncode != 0 or tell_stop):
            return 128 + caught[0]  # killed, or stopped before there was anything to save
        return _judge(process.returncode, Path(folder) if is_local else None)


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
    folder = Path(os.environ.get(EXIT_VARIABLE, ""))
    if EXIT_VARIABLE in os.environ and folder.is_dir() and not launcher_is_gone():
        (folder / f"rank-{os.environ.get('RANK', '0')}").write_text(str(code))


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
    say: Callable[[str], object],
) -> None:
    """Until the launcher ends: the first signal asks the ranks to save, the second kills."""
    deadline = float("inf")
    while process.poll() is None:
        if caught and deadline == float("inf"):
            deadline = time.monotonic() + SAVE_SECONDS
            say("stopping: the ranks finish their step, save and exit (Ctrl-C again kills them)")
            if stop_file is None:
                _ask_ranks_to_stop(process)
            else:
                stop_file.touch()
        if len(caught) > 1 or time.monotonic() > deadline:
            say("killing the run")
            return
        time.sleep(_POLL_SECONDS)


def _ask_ranks_to_stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the ranks here; to the launcher where there are none (yet, or on other hosts)."""
    ranks = [member for member in _session(process.pid) if _is_rank(member)]
    for member in ranks:
        _signal(member, signal.SIGTERM)
    if not ranks:
        for member in _session(process.pid):
            _signal(member, signal.SIGTERM)


def _session(leader: int) -> list[psutil.Process]:
    """Processes of the session that the launcher leads, also those whose parent is gone."""
    members = []
    for member in psutil.process_iter():
        try:
            if os.getsid(member.pid) == leader and member.status() != psutil.STATUS_ZOMBIE:
                members.append(member)
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            continue
    return members


def _is_rank(member: psutil.Process) -> bool:
    """Whether a process is a rank itself, not a helper that a rank has started."""
    try:
        parent = member.parent()
        return "RANK" in member.environ() and (parent is None or "RANK" not in parent.environ())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _signal(member: psutil.Process, signum: int) -> None:
    with suppress(psutil.NoSuchProcess):
        member.send_signal(signum)


def _end_other_hosts(process: subprocess.Popen[bytes]) -> None:
    """Killed at once, the launcher would leave its processes on other hosts; at SIGTERM it ends
    them there. Nothing to do where it has ended by itself.
    """
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_LEFTOVER_SECONDS)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Nothing of the run outlives it. Helpers get a moment, a launcher that still runs none."""
    running = process.poll() is None
    # psutil would take the launcher's own exit code away from us
    left = [member for member in _session(process.pid) if member.pid != process.pid]
    if running:
        process.kill()
    for member in left:
        _signal(member, signal.SIGKILL if running else signal.SIGTERM)
    _, alive = psutil.wait_procs(left, timeout=_LEFTOVER_SECONDS)
    for member in alive:
        _signal(member, signal.SIGKILL)
    process.wait()


def _judge(code: int, exit_folder: Path | None) -> int:
    """The exit code of `ds-train train`. Raises RunFailed with what is known."""
    if code == 0:
        if exit_folder is None or any(exit_folder.glob("rank-*")):
            return 0
        raise RunFailed(
            "the deepspeed launcher was killed before its ranks came to their end; `ds-train "
            "train` continues from the last checkpoint."
        )
    if code == 2:
        return 2
    signum = -code if code < 0 else 256 - code if code > 192 else 0
    if signum:
        name = next((known.name for known in signal.Signals if known == signum), str(signum))
        hint = " (the usual cause is too little memory)" if signum == signal.SIGKILL else ""
        raise RunFailed(f"a training process was killed by {name}{hint}; see above.")
    raise RunFailed(f"a training process ended with exit code {code}; its error stands above.")
