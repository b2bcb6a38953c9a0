"""Stands in for `ds-train train` in tests: writes a run folder in a moment, without training.

Usage: fake_ds_train.py RECIPE. The final loss is a function of arm, seed and learning rate, told by
`values.json` two or more folders above; "fail" there fails the run after it has begun, "fail early"
before, "sleep" waits for SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

STEPS, TOKENS_PER_STEP = 4, 100


def main() -> int:
    """Make the run that the recipe names."""
    recipe = Path(sys.argv[1])
    config = yaml.safe_load(recipe.read_text())
    run = Path(config["output_dir"])
    values = json.loads(find_values(run).read_text())
    with (run / "starts").open("a") as file:
        file.write("started\n")
    train = config["train"]
    name = str(run.relative_to(find_values(run).parent))
    value = values.get(f"{name} lr={train['learning_rate']:g}", values.get(name))
    steps = train["max_steps"] or train["max_tokens"] // TOKENS_PER_STEP
    if value == "fail early":
        print("error: no such model", flush=True)
        return 2
    facts = {"total_steps": steps, "global_batch_size": train["global_batch_size"]}
    facts |= {"base_fingerprint": "base", "data_fingerprint": "data"}
    (run / "run.json").write_text(json.dumps(facts))
    (run / "recipe.yaml").write_text(recipe.read_text())
    if value == "fail":
        print("error (rank 1): something else\nerror: the disk is full", flush=True)
        return 1
    if value == "sleep":
        signal.signal(signal.SIGTERM, lambda *args: save(run, 2) or sys.exit(0))
        (run / "asleep").write_text(str(os.getpid()))
        time.sleep(60)
        return 1
    records: list[dict[str, Any]] = [evaluation(0, 9.0)]
    for step in range(1, steps + 1):
        records.append(step_record(step))
        if step == steps // 2:
            records.append(evaluation(step, (9.0 + value) / 2))
    records.append(evaluation(steps, value))
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    save(run, steps)
    return 0


def find_values(run: Path) -> Path:
    """values.json of the comparison that a run belongs to."""
    return next(path / "values.json" for path in run.parents if (path / "values.json").is_file())


def save(run: Path, step: int) -> None:
    """A checkpoint that holds nothing but its facts."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    facts = {"step": step, "num_updates": step, "total_tokens": step * TOKENS_PER_STEP}
    facts |= {"best_loss": None, "base_fingerprint": "base", "data_fingerprint": "data"}
    (folder / "checkpoint.json").write_text(json.dumps(facts))


def step_record(step: int) -> dict[str, Any]:
    """One step of metrics.jsonl."""
    record = {"type": "step", "step": step, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3}
    record |= {"tokens": TOKENS_PER_STEP, "supervised_tokens": 1, "seconds": 1.0}
    record |= {"total_tokens": step * TOKENS_PER_STEP, "tokens_per_second": 100.0}
    return record | {"peak_memory_bytes": 1}


def evaluation(step: int, loss: float) -> dict[str, Any]:
    """One evaluation of metrics.jsonl."""
    record = {"type": "evaluation", "step": step, "loss": loss, "perplexity": 2.0, "tokens": 1}
    return record | {"token_accuracy": 1 - loss / 10, "seconds": 1.0, "best": False}


if __name__ == "__main__":
    sys.exit(main())
