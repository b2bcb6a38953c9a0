"""A small task of lm_eval in files of its own, and our adapter around a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

FILMS = [
    {"text": f"a {word} film about {topic}", "label": int(word in ("fine", "great"))}
    for topic in ("ships", "trains", "cooks", "kings", "bees", "maps")
    for word in ("fine", "dull", "great", "weak")
]
TASK = {
    "task": "films",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "training_split": "train",
    "validation_split": "validation",
    "doc_to_text": "{{text}}\nIt was",
    "doc_to_target": "label",
    "doc_to_choice": ["bad", "very good"],
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def write_task(folder: Path, name: str = "films", **changes: Any) -> Path:
    """The task's YAML file and its data; the first films of the training split are asked too."""
    folder.mkdir(exist_ok=True)
    files = {}
    for split, rows in (("train", FILMS[:16]), ("validation", FILMS[12:])):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = str(path)
    task = {**TASK, "task": name, "dataset_kwargs": {"data_files": files}, **changes}
    (folder / f"{name}.yaml").write_text(
        yaml.safe_dump({key: value for key, value in task.items() if value is not None})
    )
    return folder


def load_task(folder: Path, name: str = "films") -> Any:
    """The loaded task."""
    from ds_train.evaluate.task_list import open_tasks

    return open_tasks([name], folder)["tasks"][name]
