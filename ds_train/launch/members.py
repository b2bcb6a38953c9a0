"""The processes of a launch on this machine: the session that the launcher leads."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

import psutil

_LEFTOVER_SECONDS = 30.0


def ask_ranks_to_stop(process: subprocess.Popen[bytes]) -> None:
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


def end_session(process: subprocess.Popen[bytes]) -> None:
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
