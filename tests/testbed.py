"""launch/testbed.sh for tests: hosts on this machine, and what is broken on them for a while."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
SCRIPT = REPO / "launch" / "testbed.sh"
NOT_HERE = 2
"""The script's exit code where hosts can't be made, with the reason on stderr."""


class Testbed:
    """Hosts node-0, node-1, ... with ssh between them; `up` skips the test where not permitted."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "testbed"
        # the name has room for six signs, and two test sessions may run at once
        name = f"{os.getpid():x}"[-6:]
        self._environment = {**os.environ, "TESTBED": name, "TESTBED_DIR": str(self.folder)}

    @property
    def hostfile(self) -> Path:
        return self.folder / "hostfile"

    def up(self, num_hosts: int = 3) -> None:
        if sys.platform != "linux":
            pytest.skip("network namespaces are Linux's")
        made = self._script("up", str(num_hosts))
        if made.returncode == NOT_HERE:
            pytest.skip(made.stderr.strip())
        assert made.returncode == 0, made.stderr

    def down(self) -> None:
        assert self._script("down").returncode == 0

    def run(
        self,
        host: str,
        *command: str,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        timeout_seconds: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """A command on a host, to its end; both streams in `stdout`."""
        return subprocess.run(
            [str(SCRIPT), "exec", host, *command],
            cwd=cwd,
            env={**self._environment, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    def check(self, host: str, *command: str) -> str:
        """A command on a host that must succeed; what it printed."""
        done = self.run(host, *command)
        assert done.returncode == 0, f"{host}: {' '.join(command)}: {done.stdout}"
        return done.stdout

    def _script(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def need_pdsh() -> None:
    """DeepSpeed's launcher reaches other hosts through pdsh."""
    if shutil.which("pdsh") is None:
        pytest.skip("there is no pdsh, which the deepspeed launcher needs; install pdsh")
