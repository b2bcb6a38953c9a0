"""`benchmarks/gpu.sh`, the one command for a machine with a GPU, and the trainings behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402

SECTIONS = {
    "build": "-m ds_train build --kind cpu",
    "tests": "-m pytest tests/ops -k cuda",
    "train": "benchmarks/gpu.py --output RESULTS/gpu.md --quick",
    "loss": "benchmarks/loss_gpu.py --output RESULTS/loss_gpu.md --device cpu --quick",
}


@pytest.fixture
def interpreter(tmp_path: Path) -> Path:
    """Says what it is asked to run; fails on what contains $FAILS."""
    path = tmp_path / "python"
    path.write_text(
        '#!/bin/sh\n[ "$1" = -c ] && exit ${NO_TORCH:-0}\necho "ran: $* in $PYTHONPATH"\n'
        'case "$*" in *${FAILS:-nothing}*) exit 1 ;; esac\n'
    )
    path.chmod(0o755)
    return path


def gpu_sh(interpreter: Path, *options: str, **environment: str) -> tuple[int, list[str], str]:
    """Exit code, what was run, and all that was said."""
    done = subprocess.run(
        ["bash", str(BENCHMARKS / "gpu.sh"), *options],
        env={**os.environ, "PYTHON": str(interpreter), "PYTHONPATH": "/beside", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    return done.returncode, [x for x in said.splitlines() if x.startswith("ran: ")], said


@pytest.mark.parametrize("section", [*SECTIONS, "all"])
def test_a_rehearsal_runs_on_a_cpu(interpreter: Path, section: str) -> None:
    code, ran, said = gpu_sh(interpreter, "rehearse", section, TMPDIR=str(interpreter.parent))
    folder = said.rsplit("results: ", 1)[1].strip()
    assert Path(folder).parent == interpreter.parent  # not among the committed results
    wanted = SECTIONS.values() if section == "all" else [SECTIONS[section]]
    where = f"{BENCHMARKS.parent}:/beside"
    assert ran == [f"ran: {one.replace('RESULTS', folder)} in {where}" for one in wanted]
    assert code == 0


def test_every_section_has_its_turn_and_failures_are_named(interpreter: Path) -> None:
    code, ran, said = gpu_sh(interpreter, "rehearse", FAILS="gpu")
    assert (code, len(ran)) == (1, 4)
    assert said.endswith("failed: train loss\n")


def test_arguments_reach_the_section(interpreter: Path) -> None:
    results = str(interpreter.parent / "results")
    code, ran, _ = gpu_sh(interpreter, "loss", "--heads", "llama3-8b", RESULTS=results)
    assert code == 0
    assert ran[0].startswith(
        f"ran: benchmarks/loss_gpu.py --output {results}/loss_gpu.md --heads llama3-8b in "
    )


def test_what_it_cannot_do(interpreter: Path) -> None:
    assert gpu_sh(interpreter, "losses") == (
        2, [], "gpu.sh: no section 'losses': build, tests, train, loss or all\n"
    )  # fmt: skip
    assert gpu_sh(interpreter, "all", "--quick") == (
        2, [], "gpu.sh: all takes no arguments; name a section for: --quick\n"
    )  # fmt: skip
    assert gpu_sh(interpreter, "build", NO_TORCH="1") == (
        2, [], f"gpu.sh: {interpreter} has no torch; name another interpreter with PYTHON\n"
    )  # fmt: skip


def test_every_layout_is_compared_with_zero0_of_its_dtype(tmp_path: Path) -> None:
    for quick in (True, False):
        names = [item["name"].split("|") for item in gpu.plan(tmp_path, quick)]
        for family, dtype, _ in names:
            assert [family, dtype, "zero0"] in names
    assert len(names) == 42


def test_a_defect_does_not_end_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the end of the time lose what was measured."""
    launches: list[list[str]] = []

    def launch(place: Path, items: list[dict[str, Any]], seconds: float) -> str:
        launches.append([item["name"] for item in items])
        out_of_time = len(launches) == 3
        for item in items[: 1 if out_of_time else 2]:
            broken = item["name"] in "bd"
            result = {"error": "Traceback\nValueError: no | here", "kind": "defect"}
            text = json.dumps(result if broken else {"losses": [2.0, 1.5]})
            (place / f"{item['name']}.json").write_text(text)
        return gpu.OUT_OF_TIME if out_of_time else "the worker ended"

    monkeypatch.setattr(gpu, "launch", launch)
    results = gpu.train_all(tmp_path, [{"name": name} for name in "abcdef"], until=1e12)
    assert launches == [list("abcdef"), list("cdef"), list("ef")]
    assert [name for name in results if results[name].get("kind") == "defect"] == ["b", "d", "f"]
    assert results["f"]["error"] == "not reached: out of time"


def test_a_launcher_that_never_starts_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "launch", lambda *_: "No module named deepspeed")
    results = gpu.train_all(tmp_path, [{"name": "a"}, {"name": "b"}], until=1e12)
    assert {r["error"] for r in results.values()} == {"not reached: No module named deepspeed"}


def test_the_table_of_trainings() -> None:
    results = {
        "lora|fp32|zero0": {"losses": [4.0, 2.0]},
        "lora|fp32|zero3": {"losses": [4.004, 2.0]},
        "lora|fp16|zero0": {"error": "Traceback\nValueError: no | here", "kind": "defect"},
        "lora|fp16|zero3": {"losses": [4.0, 2.0]},
    }
    assert gpu.table(results).splitlines()[2:] == [
        "| lora | fp32 | zero0 | 2.00000 | 0.0e+00 |",
        "| lora | fp32 | zero3 | 2.00000 | 1.0e-03 |",
        "| lora | fp16 | zero0 | ValueError: no / here | |",
        "| lora | fp16 | zero3 | 2.00000 | nan |",
    ]


def test_what_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    command = ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/child; wait"]
    assert gpu.run(command, dict(os.environ), tmp_path / "log", seconds=0.5) is None
    assert time.monotonic() - began < 30
    child = int((tmp_path / "child").read_text())
    for _ in range(100):  # what is killed may need a moment to be gone
        if not is_running(child):
            break
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    """A process that has ended and waits to be reaped does not run."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_of_what_ended(tmp_path: Path, code: int) -> None:
    command = ["sh", "-c", f"echo said; exit {code}"]
    assert gpu.run(command, dict(os.environ), tmp_path / "log", seconds=60) == code
    assert (tmp_path / "log").read_text() == "said\n"
