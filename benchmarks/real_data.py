"""Trains a real pretrained Llama (stories260K) on real data, every method on every layout.

4 data sets x {LoRA, IA3, full} x {1, 2 processes} x ZeRO {1, 2, 3}, fp32, and checks that the
losses of one data set and method are the same on all six layouts. Prints a Markdown table; with
an argument, writes it there.

usage: python benchmarks/real_data.py [RESULT.md]      (needs the shared data: DS_TRAIN_SHARED)
"""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "tests"))

from distributed.conftest import launch  # noqa: E402 (the tests' launcher of many trainings)

SHARED = Path(os.environ.get("DS_TRAIN_SHARED", REPO.parent / "shared"))
METHODS = {"lora": 5e-3, "ia3": 5e-2, "full": 2e-3}
STEPS = 8


def sources(folder: Path) -> dict[str, dict[str, Any]]:
    """The data section of each data set; self-instruct's seeds become OpenAI messages."""
    data = SHARED / "data"
    messages = folder / "self_instruct_messages.jsonl"
    with (data / "self_instruct_seeds" / "seed_tasks.jsonl").open() as seeds:
        messages.write_text("".join(json.dumps(as_messages(json.loads(s))) + "\n" for s in seeds))
    with (data / "banking77" / "train.csv").open() as file:
        labels = sorted({row["category"] for row in csv.DictReader(file)})
    banking = {
        "path": str(data / "banking77" / "train.csv"),
        "format": "classification",
        "columns": {"label": "category"},
        "labels": {label: label.replace("_", " ") for label in labels},
    }
    gsm8k = {"path": str(data / "gsm8k" / "train.jsonl"), "format": "question_answer"}
    shakespeare = {"path": str(data / "tinyshakespeare" / "input.txt"), "format": "text"}
    return {
        "gsm8k": {"train": [gsm8k]},
        "self-instruct": {
            "train": [{"path": str(messages), "format": "messages"}],
            "chat_template": "plain",
        },
        "banking77": {"train": [banking]},
        "tinyshakespeare": {"train": [shakespeare]},
    }


def as_messages(seed: dict[str, Any]) -> dict[str, Any]:
    """One self-instruct seed task as a conversation."""
    instance = seed["instances"][0]
    question = "\n".join(part for part in (seed["instruction"], instance["input"]) if part)
    turns = [("user", question), ("assistant", instance["output"])]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def plan(folder: Path, num_ranks: int) -> list[dict[str, Any]]:
    """Every training of one number of ranks."""
    items = []
    for name, data in sources(folder).items():
        for method, rate in METHODS.items():
            for stage in (1, 2, 3):
                key = f"{name}|{method}|{num_ranks}|{stage}"
                items.append({"name": key, "recipe": recipe(folder, key, data, method, rate)})
    return items


def recipe(
    folder: Path, key: str, data: dict[str, Any], method: str, rate: float
) -> dict[str, Any]:
    """One training."""
    stage = int(key[-1])
    shard_all = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    return {
        "output_dir": str(folder / "runs" / key.replace("|", "-")),
        "model": {"name_or_path": str(SHARED / "models" / "stories260K" / "hf"), "dtype": "fp32"},
        "adapter": {"method": method},
        "data": {**data, "max_length": 512, "cache_dir": str(folder / "cache")},
        "train": {
            "global_batch_size": 8,
            "per_device_train_batch_size": 2,
            "max_steps": STEPS,
            "learning_rate": rate,
            "lr_scheduler_type": "constant",
        },
        "engine": {"preset": f"zero{stage}", "overrides": shard_all if stage == 3 else {}},
        "report": {"progress": "none"},
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row per data set and method; the spread is over the six layouts."""
    lines = [
        "| data | method | first loss | last loss | largest relative spread of a step's loss |",
        "|---|---|---|---|---|",
    ]
    groups: dict[str, list[list[float]]] = {}
    for key, result in results.items():
        name, method, *_ = key.split("|")
        groups.setdefault(f"{name} | {method}", []).append(result["losses"])
    for group, runs in groups.items():
        by_step = list(zip(*runs, strict=True))
        spread = max((max(losses) - min(losses)) / min(losses) for losses in by_step)
        lines.append(f"| {group} | {runs[0][0]:.5f} | {runs[0][-1]:.5f} | {spread:.1e} |")
    return "\n".join(lines)


def main() -> None:
    """Run both numbers of ranks and print the table."""
    began = time.time()
    with tempfile.TemporaryDirectory() as name:
        folder, results = Path(name), {}
        for num_ranks in (1, 2):
            items = plan(folder, num_ranks)
            results |= launch(folder, f"ranks-{num_ranks}", items, num_ranks, timeout_seconds=3000)
    head = (
        f"# Real data on every layout\n\n{date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} CPU cores, {len(results)} trainings of {STEPS} steps of 8 packed rows "
        f"of 512 tokens, fp32, in {time.time() - began:.0f} s. Layouts: {{1, 2}} processes x "
        "ZeRO {1, 2, 3}.\n"
    )
    text = f"{head}\n{table(results)}\n"
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)


if __name__ == "__main__":
    main()
