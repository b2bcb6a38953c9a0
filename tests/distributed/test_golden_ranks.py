"""The golden numbers of lm_eval again, by two processes, with whole models and under ZeRO-3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from golden_tasks import compare, golden_folder

pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'ds-train[eval]')")

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("options", "tasks", "shots"),
    [("", "g_piqa,g_mr", "2"), ("--zero 3", "g_piqa,g_mr", "0")],
    ids=["two whole models", "ZeRO-3"],
)
def test_two_processes_give_the_golden_numbers(
    shared_dir: Path, stories260k: Path, tmp_path: Path, options: str, tasks: str, shots: str
) -> None:
    golden = golden_folder(shared_dir)
    command = f"evaluate {stories260k} --tasks {tasks} --task-path {golden / 'tasks'}"
    command += f" --shots {shots} --draw lm_eval --dtype fp32 --samples --output out.json"
    done = subprocess.run(
        [sys.executable, "-m", "ds_train", *command.split(), "--processes", "2", *options.split()],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    names = [f"{task}@{shots}shot" for task in tasks.split(",")]
    compare(golden, tmp_path / "out.json", names)
