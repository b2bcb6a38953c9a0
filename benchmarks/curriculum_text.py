"""Curricula on real text: does the order of difficulty help stories260K, beyond chance?

GSM8K by the number of solution steps, OneStopEnglish by its human level; full fine-tuning under a
small budget of tokens, four arms (and one of equal updates, where they differ), and `ds-train
compare` for the rest. Prints the tables as Markdown; with a second argument, writes them there. The
comparisons lie in FOLDER and go on where they were stopped.

usage: python benchmarks/curriculum_text.py FOLDER [RESULT.md]  (needs shared data: DS_TRAIN_SHARED)
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DS_TRAIN_SHARED", REPO.parent / "shared"))
SEEDS = [0, 1, 2]
MAX_TOKENS = 150_000
LEARNING_RATE = 2e-3
"""The best of {5e-4, 2e-3, 8e-3} for the uniform arm of GSM8K, seed 0: loss 2.82, 2.31, 2.41."""
LEVELS = {"elementary": "Ele-Txt", "intermediate": "Int-Txt", "advanced": "Adv-Txt"}
STEP_GROUPS = {"steps_1_2": (1, 2), "steps_3_4": (3, 4), "steps_5_up": (5, 99)}
NUM_TEST = 300
"""Problems of GSM8K that are evaluated on."""
NUM_HELD_OUT = 12
"""Articles of OneStopEnglish that are evaluated on, at each level."""


def gsm8k(folder: Path) -> dict[str, Any]:
    """Training problems with their number of solution steps; the first test problems in groups."""
    write(folder / "train.jsonl", with_steps("train"))
    test = list(with_steps("test"))[:NUM_TEST]
    for name, (first, last) in STEP_GROUPS.items():
        write(folder / f"{name}.jsonl", (row for row in test if first <= row["steps"] <= last))
    return {
        "data": {"packing": False, "over_length": "drop"},
        "format": "question_answer",
        "sources": list(STEP_GROUPS),
        "metric": {"column": "steps"},
        "hardest": "steps_5_up",
        # short solutions make small steps, so that the arms differ in their number of updates
        "more_arms": {
            "equal_updates": {"curriculum.order": "uniform", "equal_updates_to": "easy_to_hard"}
        },
    }


def with_steps(split: str) -> Iterator[dict[str, Any]]:
    """Rows of GSM8K; a step is a line of the solution, the last line being the answer."""
    with (SHARED / "data" / "gsm8k" / f"{split}.jsonl").open() as file:
        for line in file:
            row = json.loads(line)
            lines = [text for text in row["answer"].splitlines() if text.strip()]
            yield {**row, "steps": sum(not text.startswith("####") for text in lines)}


def onestop(folder: Path) -> dict[str, Any]:
    """The articles at three levels; every eighth article is held out, at all its levels."""
    root = SHARED / "data" / "onestopenglish" / "Texts-SeparatedByReadingLevel"
    train, held_out = [], {}
    for level, name in LEVELS.items():
        held_out[level] = []
        for number, path in enumerate(sorted((root / name).glob("*.txt"))):
            text = path.read_text(encoding="utf-8-sig", errors="replace").strip()
            (held_out[level] if number % 8 == 0 else train).append({"text": text, "level": level})
    write(folder / "train.jsonl", train)
    for level, rows in held_out.items():
        write(folder / f"{level}.jsonl", rows[:NUM_HELD_OUT])
    return {
        "data": {"packing": True},
        "format": "text",
        "sources": list(LEVELS),
        "metric": {"column": "level", "levels": list(LEVELS)},
        "hardest": "advanced",
        "more_arms": {},  # packed rows: all arms make the same number of updates
    }


def write(path: Path, rows: Any) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """The comparison of one task."""

    def source(name: str) -> dict[str, Any]:
        path = str(folder / f"{name}.jsonl")
        return {"path": path, "name": name, "format": task["format"]}

    orders = ("uniform", "easy_to_hard", "random_pool", "hard_to_easy")
    return {
        "output_dir": str(folder / "runs"),
        "model": {"name_or_path": str(SHARED / "models" / "stories260K" / "hf"), "dtype": "fp32"},
        "adapter": {"method": "full"},
        "data": {
            "train": [source("train")],
            "validation": {"sources": [source(name) for name in task["sources"]]},
            "max_length": 512,
            "cache_dir": str(folder / "cache"),
            **task["data"],
        },
        "curriculum": {
            "metric": task["metric"],
            "pacing": {"type": "linear", "start": 0.1, "end_at": 0.5},
            "then": "uniform",
        },
        "train": {
            "global_batch_size": 8,
            "per_device_train_batch_size": 4,
            "max_tokens": MAX_TOKENS,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "linear",
            "min_lr_ratio": 0.1,
            "warmup_steps": 5,
        },
        "engine": {"preset": "zero0"},
        "evaluate": {"max_rows": 8},  # `compare` measures on all of it
        "cluster": {"processes_per_node": 1},
        "compare": {
            "arms": {order: {"curriculum.order": order} for order in orders} | task["more_arms"],
            "seeds": SEEDS,
            "metrics": ["loss", f"sources.{task['hardest']}.loss"],
        },
    }


def compare(folder: Path, task: dict[str, Any]) -> str:
    """Run one comparison; returns its table."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(folder, task), sort_keys=False))
    command = [sys.executable, "-m", "ds_train", "compare", str(path)]
    subprocess.run(command, check=True)
    return (folder / "runs" / "compare.md").read_text()


def main() -> None:
    """Both comparisons, one after the other."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    parts = []
    for title, prepare in (
        ("GSM8K by solution steps", gsm8k),
        ("OneStopEnglish by human level", onestop),
    ):
        folder = Path(sys.argv[1]) / prepare.__name__
        folder.mkdir(parents=True, exist_ok=True)
        parts.append(f"## {title}\n\n{compare(folder, prepare(folder))}")
    head = (
        f"# Curricula on real text\n\n{date.today()}, {platform.machine()}, {os.cpu_count()} CPU "
        f"cores: stories260K, full fine-tuning in fp32, {MAX_TOKENS:,} tokens a run, learning rate "
        f"{LEARNING_RATE:g} for all arms, loss in nats per token.\n"
    )
    text = head + "\n" + "\n".join(parts)
    print(text)
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(text)


if __name__ == "__main__":
    main()
