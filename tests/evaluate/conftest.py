"""A tiny base, a recipe's data, and runs on them, shared by the tests of evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_train.model.tiny import save_tiny


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that reads bytes."""
    return save_tiny(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Data section of a recipe with two sources, a fifth held out."""
    folder = tmp_path_factory.mktemp("data")
    for name, sign in (("plus", 1), ("minus", -1)):
        rows = [
            {"prompt": f"{name} {a} {b} =", "completion": f" {a + sign * b}"}
            for a in range(7)
            for b in range(7)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return {
        "train": [
            {"path": str(folder / f"{name}.jsonl"), "format": "prompt_completion", "name": name}
            for name in ("plus", "minus")
        ],
        "validation": {"fraction": 0.2},
        "max_length": 64,
        "num_workers": 1,
        "cache_dir": str(folder / "cache"),
    }
