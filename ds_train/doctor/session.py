"""A Python on each host that answers questions: over ssh, or here. Nothing is installed there."""

from __future__ import annotations

import json
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_train.doctor.probe_loop import MARK

_PARTS = ("probe_gpus.py", "probe_machine.py", "probe_network.py", "probe_loop.py")
_BOOTSTRAP = (
    "import sys, json; b = sys.stdin.buffer; s = {'__name__': 'probe'}; "
    "[exec(compile(p, 'probe', 'exec'), s) for p in json.loads(b.read(int(b.readline())))]; "
    "s['main'](s)"
)
CONNECT_SECONDS = 6


class HostFault(Exception):
    """Why a host does not answer; `remedy` is what to do about it."""

    def __init__(self, text: str, remedy: str, check: str = "ssh") -> None:
        super().__init__(text)
        self.text, self.remedy, self.check = text, remedy, check


class Session:
    """The probe on one host, as long as this lives."""

    def __init__(
        self, host: str | None, variables: Mapping[str, str], ssh_port: int | None = None
    ) -> None:
        """Start it; `host` None means this machine, without ssh.

        `variables`: those that ranks there would have.
        """
        self._host = host
        self._process = subprocess.Popen(
            host_command(host, [sys.executable, "-u", "-c", _BOOTSTRAP], variables, ssh_port),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        parts = json.dumps([_without_imports_of_ours(name) for name in _PARTS])
        self._send(f"{len(parts)}\n{parts}")

    def ask(self, what: str, seconds: float, **arguments: Any) -> Any:
        """The result of one function of the probe. Raises HostFault."""
        self._send(json.dumps({"do": what, **arguments}) + "\n")
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise HostFault(
                f"did not answer within {seconds:g} s ({what})",
                "look on the host for a file system that hangs (df), or for a machine that is busy",
                "answer",
            ) from None
        if line is None:
            raise self._fault()
        found = json.loads(line)
        if "error" in found:
            raise HostFault(f"{what}: {found['error']}", "run the same on the host", "answer")
        return found["result"]

    def close(self) -> None:
        """End the probe."""
        self._process.kill()
        self._process.wait()

    def _send(self, text: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text)
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended, which the answer says

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._answers.put(line.removeprefix(MARK))
        self._answers.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors += [line.strip() for line in self._process.stderr if line.strip()]

    def _fault(self) -> HostFault:
        code = self._process.wait()
        self._readers[1].join(1.0)
        return explain(self._host or "this machine", code, self._errors)


def _without_imports_of_ours(name: str) -> str:
    """A part as it is sent: all parts share one namespace, and the package may be missing."""
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("from ds_train."))


def host_command(
    host: str | None, words: Sequence[str], variables: Mapping[str, str], ssh_port: int | None
) -> list[str]:
    """What runs a command on a host in this working folder; `host` None: here, without ssh."""
    words = ["env", *(f"{name}={value}" for name, value in variables.items()), *words]
    if host is None:
        return words
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    options += [] if ssh_port is None else ["-p", str(ssh_port)]
    return ["ssh", *options, host, f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(words)}"]


_SSH_FAULTS = (
    (
        ("could not resolve", "name or service not known"),
        "resolution",
        "has no address",
        "put {host} into DNS or /etc/hosts, or correct the hostfile",
    ),
    (
        ("permission denied", "too many authentication"),
        "ssh",
        "wants a password",
        "run ssh-copy-id {host}, and try: ssh -o BatchMode=yes {host} true",
    ),
    (
        ("host key verification failed", "identification has changed"),
        "ssh",
        "has a host key that is not known",
        "run ssh {host} once by hand, or ssh-keyscan {host} >> ~/.ssh/known_hosts",
    ),
    (
        ("connection refused",),
        "ssh",
        "refuses ssh",
        "start sshd there, or set cluster.ssh_port to where it listens",
    ),
    (
        ("timed out", "no route to host", "network is unreachable", "host is down"),
        "ssh",
        "is not reached",
        "see whether {host} is up and its ssh port is open: ping {host}; or take it out of the "
        "hostfile",
    ),
)


def explain(host: str, code: int, errors: list[str]) -> HostFault:
    """What ssh's or the shell's last words mean."""
    said = " ".join(errors).lower()
    last = errors[-1] if errors else f"exit code {code}"
    for words, check, what, remedy in _SSH_FAULTS:
        if any(word in said for word in words):
            return HostFault(f"{what} ({last})", remedy.format(host=host), check)
    if "cd:" in said:
        return HostFault(
            f"has no folder {Path.cwd()}, where the launcher would start the run",
            "start from a folder that all hosts share",
            "working folder",
        )
    if code in (126, 127) or "no such file" in said:
        return HostFault(
            f"has no {sys.executable} ({last})",
            "install the same environment at the same path, or share it",
            "python",
        )
    return HostFault(f"ended with exit code {code} ({last})", f"try: ssh {host} true")
