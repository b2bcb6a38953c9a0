"""The ranks of one host in the all-reduce: starts them, and ends them when the caller is gone.

usage: python -m ds_train.doctor.host_ranks NUMBER JOIN_SECONDS    with RANK of the first of them

Standard library only: what has torch to import is a rank.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress


def main() -> int:
    """0 where all ranks ended well. The first one that does not takes the others with it."""
    number, join_seconds = int(sys.argv[1]), sys.argv[2]
    first = int(os.environ["RANK"])
    words = [sys.executable, "-u", "-m", "ds_train.doctor.allreduce", join_seconds]
    ranks = [
        subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "RANK": str(first + place), "LOCAL_RANK": str(place)},
        )
        for place in range(number)
    ]
    threading.Thread(target=_end_with_caller, args=(ranks,), daemon=True).start()
    while True:
        codes = [rank.poll() for rank in ranks]
        if any(codes):
            _end(ranks)
            return 1
        if None not in codes:
            return 0
        time.sleep(0.05)


def _end_with_caller(ranks: list[subprocess.Popen[bytes]]) -> None:
    """ssh ends without a signal to what it has started; its input ends all the same."""
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    _end(ranks)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        rank.kill()


if __name__ == "__main__":
    sys.exit(main())
