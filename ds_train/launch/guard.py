"""No orphans: a rank stops when the processes that started it are gone, also after kill -9."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from functools import cache

import psutil

PARENT_VARIABLE = "DS_TRAIN_PARENT"
"""`pid:start` of the `ds-train train` process, for the ranks below the launcher."""

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 2.0


def die_with_parent(signum: int = signal.SIGTERM) -> None:
    """Ask Linux to send `signum` to this process when its parent dies; nothing elsewhere."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signum)


def describe_parent() -> str:
    """This process for PARENT_VARIABLE; the start time tells a reused pid apart."""
    return f"{os.getpid()}:{psutil.Process().create_time()}"


@cache
def launcher_pid() -> int:
    """The process that started this one; asked first at the start, it stays what it was then."""
    return os.getppid()


def launcher_is_gone() -> bool:
    """Whether another process has become the parent since the start."""
    return os.getppid() != launcher_pid()


def stop_with_launcher() -> None:
    """Called by a rank at its start: SIGTERM to itself when launcher or `ds-train train` die.

    The launcher is the parent. `ds-train train` stands above it, so a thread looks after it.
    """
    launcher_pid()
    die_with_parent()
    if text := os.environ.get(PARENT_VARIABLE):
        pid, _, start = text.partition(":")
        watch = threading.Thread(
            target=_watch, args=(int(pid), float(start)), name="watch-parent", daemon=True
        )
        watch.start()


def _watch(pid: int, start: float) -> None:
    while _is_alive(pid, start):
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_alive(pid: int, start: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - start) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
