"""What a probe finds on this machine; GPUs are those of a made-up nvidia-smi."""

from __future__ import annotations

import ast
import socket
import stat
import sys
import time
from pathlib import Path

import pytest

from ds_train.doctor import probe_gpus, probe_machine, probe_network
from ds_train.doctor.gather import Needs, gather
from ds_train.doctor.session import _PARTS as session_parts
from ds_train.doctor.session import HostFault, Session, explain
from ds_train.doctor.session import _without_imports_of_ours as without_imports

GPUS = """\
0, NVIDIA H100 80GB HBM3, GPU-aa, 570.86.15, 81559, 1, 0
1, NVIDIA H100 80GB HBM3, GPU-bb, 570.86.15, 81559, 40211, 3
2, NVIDIA T400, GPU-cc, 570.86.15, 4096, 900, [N/A]
"""
PROCESSES = "GPU-bb, 4242, 40200, python\nGPU-bb, 4243, [N/A], vllm\n"


def fake(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name, before all others."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpus").write_text(GPUS)
    (tmp_path / "processes").write_text(PROCESSES)
    script = f'case "$1" in *query-gpu*) cat {tmp_path}/gpus;; *) cat {tmp_path}/processes;; esac'
    fake(tmp_path, "nvidia-smi", script, monkeypatch)
    found = probe_gpus.gpus()
    assert found["error"] is None
    assert [device["ecc"] for device in found["devices"]] == [0, 3, None]
    assert [len(device["processes"]) for device in found["devices"]] == [0, 2, 0]
    assert found["devices"][1]["processes"] == [
        {"pid": 4242, "mib": 40200, "name": "python"},
        {"pid": 4243, "mib": None, "name": "vllm"},
    ]
    assert found["devices"][2]["used_mib"] == 900


def test_a_driver_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "Failed to initialize NVML: Driver/library version mismatch"
    fake(tmp_path, "nvidia-smi", f'echo "{words}"; exit 18', monkeypatch)
    found = probe_gpus.gpus()
    assert found["devices"] == []
    assert words in found["error"]


def test_cuda_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    line = "Cuda compilation tools, release 12.4, V12.4.131"
    fake(tmp_path / "bin", "nvcc", f"echo '{line}'", monkeypatch)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert probe_gpus.cuda_home()["version"] == "12.4"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert probe_gpus.cuda_home()["version"] is None


def test_paths_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("12345")
    (tmp_path / "b.jsonl").write_text("123")
    assert probe_machine.path_facts(str(tmp_path / "none")) is None
    assert probe_machine.path_facts(str(tmp_path / "a.jsonl"))["bytes"] == 5
    assert probe_machine.path_facts(str(tmp_path))["bytes"] == 8
    assert probe_machine.path_facts(str(tmp_path / "*.jsonl")) == {
        "readable": True,
        "bytes": 8,
        "files": 2,
    }
    found = probe_machine.folder_facts(str(tmp_path / "not" / "yet"))
    assert found["place"] == str(tmp_path)
    assert found["error"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_locks_of_killed_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "fused_adam").mkdir()
    (tmp_path / "fused_adam" / "lock").write_text("")
    (found,) = probe_machine.build_locks()
    assert found["path"].endswith("fused_adam/lock")
    assert 0 <= found["seconds"] < 60


def test_connections_on_loopback() -> None:
    port = probe_network.listen()["port"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        free = closed.getsockname()[1]
    with socket.socket() as deaf:  # takes connections and never answers
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        targets = [
            ["good", "127.0.0.1", port],
            ["closed", "127.0.0.1", free],
            ["deaf", "127.0.0.1", deaf.getsockname()[1]],
        ]
        began = time.monotonic()
        found = probe_network.connect(targets, seconds=0.5)
    assert time.monotonic() - began < 2
    assert 0 < found["good"]["microseconds"] < 1e5
    assert found["closed"] == {"error": "Connection refused", "stage": "connect"}
    assert found["deaf"] == {"error": "no answer", "stage": "small"}


def test_a_port_that_is_taken() -> None:
    port = probe_network.listen()["port"]
    assert probe_network.listen(port) == {"port": None, "error": "Address already in use"}


def test_tokens(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    assert probe_network.write_token(folder, ".a") == {"error": None}
    assert probe_network.read_tokens(folder, [".a", ".b"], seconds=0.1) == {"missing": [".b"]}
    probe_network.remove_tokens(folder, [".a", ".b"], made=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    assert probe_network.write_token(str(tmp_path / "file"), ".a")["error"] is not None


def test_what_is_sent_needs_the_standard_library_only() -> None:
    for name in session_parts:
        for node in ast.walk(ast.parse(without_imports(name))):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in sys.stdlib_module_names
            if isinstance(node, ast.Import):
                assert {one.name.split(".")[0] for one in node.names} <= sys.stdlib_module_names


def test_a_session_here(tmp_path: Path) -> None:
    session = Session(None, {"HELLO": "there"})
    try:
        assert abs(session.ask("clock", 20)["now"] - time.time()) < 5
        with pytest.raises(HostFault, match="path_facts: TypeError"):
            session.ask("path_facts", 20)
        with pytest.raises(HostFault, match=r"did not answer within 0\.2 s \(read_tokens\)"):
            session.ask("read_tokens", 0.2, folder=str(tmp_path), names=["x"])
    finally:
        session.close()


def test_gather_this_machine(tmp_path: Path) -> None:
    needs = Needs(
        reads={"data.train[0]": str(tmp_path)},
        output_dir=str(tmp_path / "run"),
        cache_dir=str(tmp_path),
        disk_bytes=1,
    )
    (report,) = gather([], needs, time.time)
    assert report.fault is None
    assert report.facts is not None
    assert report.facts["versions"]["torch"] is not None
    assert report.facts["code"] == probe_machine.code_hash()
    assert report.token_error is None
    assert report.missing == []
    assert abs(report.skew_seconds or 0) < 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("code", "said", "check", "words"),
    [
        (
            255,
            "ssh: Could not resolve hostname w1: Name or service not known",
            "resolution",
            "no ad",
        ),
        (255, "root@w1: Permission denied (publickey).", "ssh", "wants a password"),
        (255, "Host key verification failed.", "ssh", "host key that is not known"),
        (255, "ssh: connect to host w1 port 22: Connection refused", "ssh", "refuses ssh"),
        (255, "ssh: connect to host w1 port 22: Connection timed out", "ssh", "is not reached"),
        (
            127,
            "bash: line 1: /opt/venv/bin/python: No such file or directory",
            "python",
            "has no /",
        ),
        (
            1,
            "bash: line 1: cd: /work: No such file or directory",
            "working folder",
            "has no folder",
        ),
        (1, "", "ssh", "ended with exit code 1"),
    ],
)
def test_what_ssh_says(code: int, said: str, check: str, words: str) -> None:
    fault = explain("w1", code, [said] if said else [])
    assert fault.check == check
    assert words in fault.text
    assert fault.remedy
