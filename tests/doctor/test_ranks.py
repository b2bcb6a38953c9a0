"""The start of the all-reduce: commands of all hosts at once, and what becomes of those that fail.

Shell commands stand in for the hosts, but for one real all-reduce of two ranks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from testbed import REPO

from ds_train.doctor import pdsh
from ds_train.doctor.collective import MARK, judge_collective
from ds_train.doctor.ranks import HostRanks, rank_commands, run_collective
from ds_train.launch.command import free_port

RESULT = '{"world_size": 2, "backend": "gloo", "ring": [], "pairs": []}'


def joined(place: int) -> str:
    return f'echo \'{MARK}{{"joined": {place}, "host": {place}}}\''


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_ranks_are_counted_over_the_hosts() -> None:
    hosts = [HostRanks("w0", 2, {"A": "1"}), HostRanks("w1", 3, {}), HostRanks("w2", 1, {})]
    commands = rank_commands(hosts, "10.0.0.1", 29501, 2222, 40)
    assert list(commands) == ["w0", "w1", "w2"]
    assert commands["w1"][0] == "ssh" and commands["w1"][-4:-1] == ["-p", "2222", "w1"]
    remote = commands["w1"][-1]
    for word in (
        "MASTER_ADDR=10.0.0.1 MASTER_PORT=29501 WORLD_SIZE=6 RANK=2 CROSS_RANK=1 ",
        "-m ds_train.doctor.host_ranks 3 30",
    ):
        assert word in remote
    assert "env A=1 " in commands["w0"][-1] and " RANK=5 CROSS_RANK=2 " in commands["w2"][-1]


def test_what_ranks_say_is_put_together() -> None:
    commands = {"w0": sh(f"{joined(0)}; echo '{MARK}{RESULT}'"), "w1": sh(joined(1))}
    measured = run_collective(commands, 20)
    assert measured["joined"] == [0, 1] and measured["world_size"] == 2
    assert measured["error"] is None and measured["failed"] is None


def test_a_host_that_fails_is_named_at_once_and_the_others_are_ended() -> None:
    commands = {
        "w0": sh(f"{joined(0)}; sleep 60"),
        "w1": sh("echo 'OSError: no torch' >&2; exit 3"),
    }
    began = time.monotonic()
    measured = run_collective(commands, 30)
    assert time.monotonic() - began < 10
    (found,) = judge_collective(measured, ["w0", "w1"])
    assert (found.status, found.hosts) == ("fail", ("w1",))
    assert found.text == "w1: OSError: no torch"


def test_a_host_that_never_starts_is_named_where_another_gave_up_waiting() -> None:
    """Not the one that says so."""
    commands = {"w0": sh(f"{joined(0)}; sleep 1; echo 'Error: waited'; exit 1"), "w1": sh("cat")}
    measured = run_collective(commands, 1.2)
    assert measured["failed"] is None
    (found,) = judge_collective(measured, ["w0", "w1"])
    assert found.hosts == ("w1",)
    assert found.text == "w0: Error: waited; the processes of these hosts never started"
    assert found.remedy is not None and "--wait 120" in found.remedy


def test_the_time_is_over() -> None:
    measured = run_collective({"w0": sh(f"{joined(0)}; cat")}, 0.3)
    assert measured["error"] == "did not end within 0.3 s"


def test_ranks_end_when_the_caller_is_gone(tmp_path: Path) -> None:
    """As over ssh, which ends their input and sends no signal. Torch is one that sleeps here."""
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "ds_train.doctor.host_ranks", "2", "30"],
        stdin=subprocess.PIPE,
        env={**os.environ, "RANK": "0", "PYTHONPATH": f"{tmp_path}:{REPO}"},
    )
    ranks: list[psutil.Process] = []
    deadline = time.monotonic() + 20
    while len(ranks) < 2 and time.monotonic() < deadline:
        ranks = psutil.Process(process.pid).children()
        time.sleep(0.02)
    assert [rank.environ()["LOCAL_RANK"] for rank in ranks] == ["0", "1"]
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=10) == 1
    assert psutil.wait_procs(ranks, timeout=5)[1] == []


@pytest.mark.distributed
def test_a_real_all_reduce_of_two_ranks() -> None:
    hosts = [HostRanks("here", 2, {"DS_ACCELERATOR": "cpu"}, over_ssh=False)]
    measured = run_collective(rank_commands(hosts, "127.0.0.1", free_port(), None, 60), 60)
    assert measured["error"] is None and measured["world_size"] == 2
    assert [entry["bytes"] for entry in measured["ring"]][:2] == [8, 4096]
    assert 0 < measured["start_seconds"] < 60
    (found,) = judge_collective(measured, ["here"])
    assert found.text.startswith("2 ranks, gloo, started within ")


def fake_pdsh(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pdsh").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "pdsh").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_pdsh_is_called_as_the_launcher_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = '[ "$*" = "-S -f 1024 -w w0,w1 true" ] && [ $PDSH_RCMD_TYPE = ssh ]'
    fake_pdsh(tmp_path, f'{words} && [ "$PDSH_SSH_ARGS_APPEND" = "-p 2222" ]', monkeypatch)
    assert pdsh.check_pdsh(["w0", "w1"], 2222).status == "ok"
    assert pdsh.check_pdsh(["w0", "w1"], None).status == "fail"


def test_hosts_that_pdsh_does_not_reach_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pdsh(tmp_path, "echo 'w1: Permission denied' >&2; exit 255", monkeypatch)
    found = pdsh.check_pdsh(["w0", "w1"], None)
    assert (found.status, found.hosts) == ("fail", ("w1",))
    assert found.text == "ended with exit code 255 (w1: Permission denied)"
    assert found.remedy == "try: PDSH_RCMD_TYPE=ssh pdsh -w w1 true"


def test_without_pdsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pdsh.check_pdsh(["w0", "w1"], None).text.startswith("is not installed here")
