"""The lock that lets one process make what others wait for."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from ds_train.locks import locked

HOLD = """\
import sys, time
from pathlib import Path
from ds_train.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    Path(sys.argv[3]).touch()
"""


def holder(lock: Path, seconds: float, end: Path) -> subprocess.Popen[str]:
    """A process that holds the lock, and touches `end` just before it lets go."""
    arguments = [sys.executable, "-c", HOLD, str(lock), str(seconds), str(end)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_waits(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock", 0.3, tmp_path / "end")
    with locked(tmp_path / "lock"):
        assert (tmp_path / "end").exists()
    assert process.wait() == 0


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock", 600, tmp_path / "end")
    process.send_signal(signal.SIGKILL)
    with locked(tmp_path / "lock"):
        assert not (tmp_path / "end").exists()
    process.wait()
