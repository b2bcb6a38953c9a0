"""Contexts, scores and generated texts do not depend on the number of ranks, nor on ZeRO-3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'ds-train[eval]')")

from film_task import write_task

from ds_train.model.tiny import save_tiny

pytestmark = pytest.mark.distributed


def evaluate(folder: Path, name: str, options: str) -> list[dict[str, Any]]:
    """What `ds-train evaluate` finds, as far as it must not depend on the layout."""
    command = f"evaluate {folder / 'model'} --tasks films,spoken --task-path {folder / 'tasks'}"
    command += f" --shots 3 --demonstrations knn --samples --device cpu --output {name} {options}"
    done = subprocess.run(
        [sys.executable, "-m", "ds_train", *command.split(), "--calibration", "contextual,batch"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = []
    for one in json.loads((folder / name).read_text())["evaluations"]:
        samples = sorted(one["samples"], key=lambda sample: sample["doc_id"])
        asked = [[request[0] for request in sample["arguments"]] for sample in samples]
        texts = [sample["filtered_resps"] for sample in samples] if one["task"] == "spoken" else []
        found.append({"results": one["results"], "asked": asked, "texts": texts})
    return found


def test_one_process_two_processes_and_zero_3(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    write_task(tmp_path / "tasks")
    write_task(
        tmp_path / "tasks",
        "spoken",
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{['bad', 'very good'][label]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 8},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    alone = evaluate(tmp_path, "one.json", "")
    assert [len(one["asked"]) for one in alone] == [12, 12]
    assert evaluate(tmp_path, "two.json", "--processes 2") == alone
    assert evaluate(tmp_path, "sharded.json", "--processes 2 --zero 3") == alone
