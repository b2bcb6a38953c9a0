"""Recipes over small files, for tests of the data part."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ds_train.config.run import RunConfig


def write_jsonl(path: Path, rows: Iterable[Any]) -> str:
    """Writes rows as JSON lines; gives the path as a recipe holds it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def recipe(model: Path, folder: Path, train: list[Any], **data: Any) -> RunConfig:
    """A recipe with the cache in `folder`; keys of `data` go to the data section."""
    sections = {key: data.pop(key) for key in ("cluster", "train_section") if key in data}
    return RunConfig.model_validate(
        {
            "output_dir": str(folder / "run"),
            "model": {"name_or_path": str(model)},
            "data": {"train": train, "max_length": 512, "cache_dir": str(folder / "cache"), **data},
            "train": sections.pop("train_section", {"max_steps": 10}),
            **sections,
        }
    )
