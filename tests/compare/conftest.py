"""A comparison whose runs are faked: everything but the training is real."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_train.cli import main
from ds_train.compare import check, run
from ds_train.model.tiny import save_tiny

FAKE = Path(__file__).with_name("fake_ds_train.py")
Compare = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return save_tiny(tmp_path_factory.mktemp("compare") / "model")


@pytest.fixture
def compare(
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Compare:
    """`ds-train compare my.yaml ...` (or another command) in a folder; returns exit code, stdout
    and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(run, "train_command", fake_command)
    # a fake run's fingerprints are none
    monkeypatch.setattr(check, "check_same_inputs", lambda *arguments: None)
    row = '{"prompt": "2 + 3?", "completion": " 5"}\n'
    Path("rows.jsonl").write_text(row * 20)
    Path("held_out.jsonl").write_text(row * 4)
    Path("out").mkdir()
    write_recipe(tiny_folder)

    def command(
        *overrides: str, values: dict[str, Any] | None = None, name: str = "compare"
    ) -> tuple[int, str, str]:
        if values is not None:
            Path("out/values.json").write_text(json.dumps(values))
        capfd.readouterr()
        code = main([name, "my.yaml", *overrides])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return command


def fake_command(recipe: Path, port: int | None) -> list[str]:
    """Instead of `ds-train train`."""
    return [sys.executable, str(FAKE), str(recipe)]


def write_recipe(model: Path) -> None:
    """my.yaml: two arms, two seeds, 4 steps."""
    recipe = {
        "output_dir": "out",
        "model": {"name_or_path": str(model), "dtype": "fp32"},
        "data": {
            "train": [{"path": "rows.jsonl", "format": "prompt_completion"}],
            "validation": {
                "sources": [
                    {"path": "held_out.jsonl", "format": "prompt_completion", "name": "held_out"}
                ]
            },
            "max_length": 64,
            "cache_dir": "cache",
            "num_workers": 1,
        },
        "train": {"global_batch_size": 16, "per_device_train_batch_size": 4, "max_steps": 4},
        "cluster": {"processes_per_node": 1},
        "compare": {"arms": {"plain": None, "high": {"adapter.r": 16}}, "seeds": [0, 1]},
    }
    Path("my.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
