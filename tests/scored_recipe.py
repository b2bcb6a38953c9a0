"""A recipe with a curriculum over a few rows and the tiny byte-level model: tests of scoring."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_train.config.run import RunConfig
from ds_train.curriculum.scores import ScoreBook
from ds_train.data.prepare import PreparedData, prepare_data

ROWS: list[dict[str, Any]] = [
    {"prompt": f"{a} + {b}?", "completion": f" {a + b}" + "!" * (a % 3), "steps": (a * b) % 7}
    for a in range(10)
    for b in range(6)
]


def scored_recipe(
    model: Path,
    folder: Path,
    metric: Any,
    rows: Sequence[dict[str, Any]] = ROWS,
    *,
    sections: dict[str, Any] | None = None,
    **data: Any,
) -> RunConfig:
    """Recipe with everything in `folder`; keys of `data` go to the data section."""
    folder.mkdir(exist_ok=True)
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"metric": metric}
    if metric in ("perplexity", "ifd"):
        section["metric_model"] = str(model)
    return RunConfig.model_validate(
        {
            "output_dir": str(folder / "run"),
            "model": {"name_or_path": str(model), "dtype": "fp32"},
            "data": {
                "train": [{"path": str(path)}],
                "max_length": 64,
                "cache_dir": str(folder / "cache"),
                **data,
            },
            "train": {"max_steps": 10},
            "curriculum": section,
            **(sections or {}),
        }
    )


def silent(text: str) -> None:
    """Says nothing."""


def prepared(config: RunConfig) -> PreparedData:
    """The recipe's data, tokenised."""
    return prepare_data(config, say=silent)


def book_of(config: RunConfig) -> ScoreBook:
    """The difficulties of a recipe's samples."""
    return ScoreBook(config, prepared(config))
