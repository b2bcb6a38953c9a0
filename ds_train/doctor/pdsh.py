"""pdsh, through which DeepSpeed's launcher reaches other hosts: whether it gets through."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from ds_train.doctor.finding import Finding, fail, ok

SECONDS = 15.0
_FAN_OUT = 1024
"""That of the launcher."""


def check_pdsh(hosts: Sequence[str], ssh_port: int | None) -> Finding:
    """Whether it runs a command on all hosts that answer to ssh, called as the launcher does."""
    if shutil.which("pdsh") is None:
        text = "is not installed here, and the deepspeed launcher reaches other hosts through it"
        return fail("pdsh", text, "install pdsh (apt-get install pdsh)")
    environment = {**os.environ, "PDSH_RCMD_TYPE": "ssh"}
    if ssh_port is not None:
        before = environment.get("PDSH_SSH_ARGS_APPEND", "")
        environment["PDSH_SSH_ARGS_APPEND"] = f"{before} -p {ssh_port}".strip()
    try:
        done = subprocess.run(
            ["pdsh", "-S", "-f", str(_FAN_OUT), "-w", ",".join(hosts), "true"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _failed(hosts, f"did not run a command on all hosts within {SECONDS:g} s", "")
    if done.returncode == 0:
        return ok("pdsh", f"runs a command on all {len(hosts)} hosts")
    return _failed(hosts, f"ended with exit code {done.returncode}", done.stdout)


def _failed(hosts: Sequence[str], text: str, printed: str) -> Finding:
    """The hosts that it has named are those that it did not reach."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    named = [host for host in hosts if any(f"{host}: " in line for line in lines)]
    more = f" ({lines[-1][:200]})" if lines else ""
    remedy = f"try: PDSH_RCMD_TYPE=ssh pdsh -w {(named or list(hosts))[0]} true"
    return fail("pdsh", f"{text}{more}", remedy, *named)
