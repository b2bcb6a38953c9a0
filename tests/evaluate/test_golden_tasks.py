"""`ds-train evaluate --tasks` gives the numbers of lm_eval 0.4.13 itself, kept in golden files.

stories260K, fp32, lm_eval's own drawing with seed 1234; the run with several demonstrations covers
contexts that are cut from the left. tests/distributed/test_golden_ranks.py: several processes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_tasks import compare, golden_folder

from ds_train.cli import main

pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'ds-train[eval]')")


@pytest.mark.parametrize(
    ("tasks", "shots"), [("g_piqa,g_mr", "0"), ("g_piqa", "2"), ("g_mr", "2,4")]
)
def test_golden_numbers(
    shared_dir: Path,
    stories260k: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tasks: str,
    shots: str,
) -> None:
    golden = golden_folder(shared_dir)
    monkeypatch.chdir(tmp_path)  # data files are found from the YAML files, wherever one stands
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    command = f"evaluate {stories260k} --tasks {tasks} --task-path {golden / 'tasks'}"
    command += f" --shots {shots} --draw lm_eval --dtype fp32 --samples --output out.json"
    try:
        assert main([*command.split(), "--device", "cpu"]) == 0
    finally:
        torch.set_num_threads(threads)
    names = [f"{task}@{number}shot" for task in tasks.split(",") for number in shots.split(",")]
    compare(golden, tmp_path / "out.json", names)
    printed = capsys.readouterr().out
    assert all(task in printed for task in tasks.split(","))
