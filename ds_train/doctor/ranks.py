"""Starts the ranks of the all-reduce on all hosts at once, and hears what they say.

Over the doctor's own ssh: DeepSpeed's launcher imports the whole of deepspeed on every host first,
which takes longer than what it starts here. pdsh, its way to other hosts, is tried by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ds_train.doctor.collective import MARK, last_words, read_collective
from ds_train.doctor.session import host_command

_JOIN_SHARE = 0.75
"""Of the time for everything: a rank waits so long for the others, and can then still say so."""
_END_SECONDS = 2.0


@dataclass(frozen=True)
class HostRanks:
    """The ranks of one host."""

    name: str
    number: int
    variables: Mapping[str, str]
    """Of all of them."""
    over_ssh: bool = True


def rank_commands(
    hosts: Sequence[HostRanks], address: str, port: int, ssh_port: int | None, seconds: float
) -> dict[str, list[str]]:
    """Host -> the command that starts its ranks, with the variables of DeepSpeed's launcher.

    Args:
        address, port: where the first rank listens.
        seconds: the limit for everything.
    """
    commands, first = {}, 0
    world_size = sum(one.number for one in hosts)
    words = [sys.executable, "-u", "-m", "ds_train.doctor.host_ranks"]
    for place, one in enumerate(hosts):
        variables = {
            **one.variables,
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world_size),
            "RANK": str(first),
            "CROSS_RANK": str(place),
        }
        arguments = [str(one.number), f"{_JOIN_SHARE * seconds:g}"]
        host = one.name if one.over_ssh else None
        commands[one.name] = host_command(host, [*words, *arguments], variables, ssh_port)
        first += one.number
    return commands


def run_collective(commands: Mapping[str, Sequence[str]], seconds: float) -> dict[str, Any]:
    """Run the commands of all hosts until all have ended, one fails, or the time is over.

    Returns:
        {"ring", "pairs", ...} as measured; "joined": places of the hosts whose ranks came;
        "start_seconds": until the last of them had; "error" or None; "failed": the host that it
        came from, None where ranks only waited for others.
    """
    began = time.monotonic()
    processes = {host: _Process(command) for host, command in commands.items()}
    try:
        failed, is_over = _wait(processes, began + seconds)
        taken = time.monotonic() - began
    finally:
        _end(processes.values())
    error = f"did not end within {seconds:g} s" if is_over else None
    if failed is not None:
        error = f"{failed}: {last_words(processes[failed].printed)}"
        failed = failed if taken < _JOIN_SHARE * seconds else None
    printed = "".join(process.printed for process in processes.values())
    came = [one.heard - began for one in processes.values() if one.heard is not None]
    started = max(came) if came else None
    return {**read_collective(printed, error), "failed": failed, "start_seconds": started}


def _wait(processes: Mapping[str, _Process], deadline: float) -> tuple[str | None, bool]:
    """The first host that fails, or None; whether the time was over before all had ended."""
    while True:
        codes = {host: process.code for host, process in processes.items()}
        if failed := [host for host, code in codes.items() if code]:
            return failed[0], False
        if None not in codes.values():
            return None, False
        if time.monotonic() > deadline:
            return None, True
        time.sleep(0.05)


def _end(processes: Iterable[_Process]) -> None:
    """Their input ends first, at which ranks end wherever they are; then ssh is ended."""
    processes = list(processes)
    for process in processes:
        process.hang_up()
    deadline = time.monotonic() + _END_SECONDS
    for process in processes:
        process.end(deadline - time.monotonic())


class _Process:
    """A command whose output is read as it comes."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.heard: float | None = None
        """When a rank said its first word."""
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if self.heard is None and MARK in line:
                self.heard = time.monotonic()

    @property
    def code(self) -> int | None:
        return self._process.poll()

    @property
    def printed(self) -> str:
        return "".join(self._lines)

    def hang_up(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def end(self, seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=max(0.0, seconds))
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(1.0)
