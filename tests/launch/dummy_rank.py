"""A rank that needs no torch: waits, saves on SIGTERM, fails as it is told.

usage: dummy_rank.py --local_rank=N FOLDER MODE
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ds_train.launch.guard import stop_with_launcher
from ds_train.launch.process import leave_exit_code


def main() -> int:
    stop_with_launcher()
    folder, mode = Path(sys.argv[2]), sys.argv[3]
    rank = os.environ["RANK"]
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, _: stopped.append(signum))
    if mode == "helper":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    if mode == "exit2":
        return 2
    if mode == "exit3" and rank == "1":
        return 3
    if mode == "killed" and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    while mode in ("wait", "helper", "stubborn") and (mode == "stubborn" or not stopped):
        time.sleep(0.05)
    if stopped:
        (folder / f"saved-{rank}").write_text("saved")
    return 0


if __name__ == "__main__":
    code = main()
    leave_exit_code(code)
    sys.exit(code)
