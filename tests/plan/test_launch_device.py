"""What this machine must have for a recipe is asked for before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_train.errors import ConfigError
from ds_train.plan import launch

RECIPE = """\
output_dir: run
model: {name_or_path: ./model, init: random}
adapter: {method: full}
data: {train: [{path: rows.jsonl}]}
train: {max_steps: 10}
engine:
  preset: zero3_offload_nvme
  overrides: {zero_optimization: {offload_optimizer: {nvme_path: disk}}}
"""


def test_offload_to_nvme_needs_libaio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.setattr(launch, "find_library", lambda name: None)
    with pytest.raises(ConfigError, match="through libaio, which is not installed"):
        launch.plan_launch("r.yaml")
    monkeypatch.setattr(launch, "find_library", lambda name: f"lib{name}.so.1")
    assert "deepspeed" in launch.plan_launch("r.yaml").command[0]
