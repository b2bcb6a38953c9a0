"""Few-shot learning on real text: LoRA, IA3 with and without T-Few's losses, full fine-tuning.

Movie-review polarity (MR) and ten intents of BANKING77 on stories260K, k examples of each class,
five seeds, measured by rank classification on held-out examples. Prints the tables as Markdown;
with a second argument, writes them there. The comparisons lie in FOLDER and go on where they were
stopped.

usage: python benchmarks/fewshot_text.py FOLDER [RESULT.md]  (needs shared data: DS_TRAIN_SHARED)
"""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from curriculum_text import SHARED, write

SHOTS, SEEDS = "4,16,64", "5"
MAX_STEPS, BATCH = 100, 8
NUM_INTENTS = 10
"""The first ones by name: all 77 candidates of each example would take too long here."""
NUM_TEST = {"mr": 100, "banking77": 10}
"""Examples of each class that are measured."""
ARMS: dict[str, dict[str, Any]] = {
    "lora": {"adapter.method": "lora", "adapter.r": 4, "train.learning_rate": 3e-3},
    "ia3": {"adapter.method": "ia3", "train.learning_rate": 3e-3},
    "ia3_tfew": {
        "adapter.method": "ia3",
        "train.learning_rate": 3e-3,
        "fewshot.losses": {"max_negatives": 3},
    },
    "full": {"adapter.method": "full", "train.learning_rate": 3e-4},
}
"""Rank and learning rates are those of the T-Few paper (arXiv 2205.05638, appendix)."""


def mr(folder: Path) -> dict[str, Any]:
    """Sentence polarity: the last sentences of each file are held out."""
    root = SHARED / "data" / "mr_sentence_polarity"
    train, test = [], []
    for label, name in (("negative", "rt-polarity.neg"), ("positive", "rt-polarity.pos")):
        lines = (root / name).read_text(encoding="latin-1").splitlines()
        rows = [{"text": line.strip(), "label": label} for line in lines if line.strip()]
        train += rows[: -NUM_TEST["mr"]]
        test += rows[-NUM_TEST["mr"] :]
    write(folder / "train.jsonl", train)
    write(folder / "test.jsonl", test)
    return {"template": "{text}\nIt was", "labels": {"negative": "bad", "positive": "good"}}


def banking77(folder: Path) -> dict[str, Any]:
    """Questions to a bank, with the first intents by name; underscores become spaces."""
    intents = sorted({row["label"] for row in read_banking("train")})[:NUM_INTENTS]
    write(folder / "train.jsonl", (r for r in read_banking("train") if r["label"] in intents))
    taken = dict.fromkeys(intents, 0)
    test = []
    for row in read_banking("test"):
        if row["label"] in taken and taken[row["label"]] < NUM_TEST["banking77"]:
            taken[row["label"]] += 1
            test.append(row)
    write(folder / "test.jsonl", test)
    labels = {intent: intent.replace("_", " ").lower() for intent in intents}
    return {"template": "{text}\nThis is about", "labels": labels}


def read_banking(split: str) -> Iterator[dict[str, str]]:
    """Rows of BANKING77."""
    with (SHARED / "data" / "banking77" / f"{split}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            yield {"text": row["text"].strip(), "label": row["category"]}


def recipe(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """The few-shot comparison of one task."""

    def source(name: str) -> dict[str, Any]:
        path = str(folder / f"{name}.jsonl")
        return {"path": path, "name": name, "format": "classification", **task}

    return {
        "output_dir": str(folder / "runs"),
        "model": {"name_or_path": str(SHARED / "models" / "stories260K" / "hf"), "dtype": "fp32"},
        "data": {
            "train": [source("train")],
            "validation": {"sources": [source("test")]},
            "max_length": 512,
            "packing": False,  # a row is an example in every arm
            "cache_dir": str(folder / "cache"),
        },
        "train": {
            "global_batch_size": BATCH,
            "per_device_train_batch_size": BATCH,
            "max_steps": MAX_STEPS,
            "lr_scheduler_type": "linear",
            "warmup_steps": round(0.06 * MAX_STEPS),
        },
        "engine": {"preset": "zero0"},
        "fewshot": {"subset": {"k": 4, "dev": False}},
        "evaluate": {"rank_classification": True},
        "cluster": {"processes_per_node": 1},
        "compare": {"arms": ARMS, "baseline": "lora", "metrics": ["rank_accuracy"]},
    }


def fewshot(folder: Path, task: dict[str, Any]) -> str:
    """Run one comparison; returns its table."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(folder, task), sort_keys=False))
    command = [sys.executable, "-m", "ds_train", "fewshot", str(path)]
    subprocess.run([*command, "--k", SHOTS, "--seeds", SEEDS], check=True)
    return (folder / "runs" / "fewshot.md").read_text()


def main() -> None:
    """Both comparisons, one after the other."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    parts = []
    for title, prepare in (
        ("Movie-review polarity, 2 classes", mr),
        (f"BANKING77, the first {NUM_INTENTS} intents by name", banking77),
    ):
        folder = Path(sys.argv[1]) / prepare.__name__
        folder.mkdir(parents=True, exist_ok=True)
        parts.append(f"## {title}\n\n{fewshot(folder, prepare(folder))}")
    head = (
        f"# Few-shot learning on real text\n\n{date.today()}, {platform.machine()}, "
        f"{os.cpu_count()} CPU cores: stories260K in fp32, {MAX_STEPS} steps of {BATCH} examples, "
        "rank and learning rates of the T-Few paper, not tuned. Rank accuracy: the share of "
        f"held-out examples ({NUM_TEST['mr']} and {NUM_TEST['banking77']} of each class) whose "
        "right answer has the highest mean log-probability per token. Every run sees "
        f"{MAX_STEPS * BATCH:,} examples whatever k is, so at k = 64 of ten classes each one once "
        "or twice.\n"
    )
    text = head + "\n" + "\n".join(parts)
    print(text)
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(text)


if __name__ == "__main__":
    main()
