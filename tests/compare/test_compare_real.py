"""A small real comparison through the real command: arms x seeds of a handful of steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_train.checkpoint.folder import complete_checkpoints
from ds_train.checkpoint.pieces import StateFiles
from ds_train.model.tiny import save_tiny
from ds_train.paths import RunPaths

pytestmark = pytest.mark.distributed
EXPECTED = ["full/seed-0", "full/seed-1", "lora/seed-0", "lora/seed-1"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, rows of two sources, and a recipe that compares LoRA with full training."""
    folder = tmp_path_factory.mktemp("comparison")
    save_tiny(folder / "model")
    for name, stop in (("train", 40), ("short", 6), ("long", 12)):
        rows = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(stop)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    content: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "model": {"name_or_path": str(folder / "model"), "dtype": "fp32"},
        "data": {
            "train": [{"path": str(folder / "train.jsonl"), "format": "prompt_completion"}],
            "validation": {
                "sources": [
                    {"path": str(folder / f"{name}.jsonl"), "name": name}
                    for name in ("short", "long")
                ]
            },
            "max_length": 32,
            "packing": False,
            "cache_dir": str(folder / "cache"),
            "num_workers": 1,
        },
        "train": {"global_batch_size": 8, "per_device_train_batch_size": 4, "max_steps": 6},
        "checkpoint": {"every": "3 steps", "keep": 5, "best": False},
        "cluster": {"processes_per_node": 1},
        "compare": {
            "arms": {"lora": {"adapter": {"method": "lora", "r": 4}}, "full": None},
            "baseline": "lora",
            "seeds": [0, 1],
            "metrics": ["loss", "sources.long.exact_match"],
            "every_checkpoint": True,
            "parallel": 2,
        },
        "adapter": {"method": "full"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def start(recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    """The command of a user."""
    return subprocess.Popen(
        [sys.executable, "-m", "ds_train", "compare", str(recipe), *overrides],
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_interrupted_then_finished(recipe: Path) -> None:
    """Ctrl-C after the first two runs have made a step; the same command makes the table."""
    out = recipe.parent / "out"
    first = start(recipe)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and first.poll() is None:
        if len(list(out.glob("*/seed-0/metrics.jsonl"))) == 2:
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    printed, _ = first.communicate(timeout=240)
    assert first.returncode == 0, printed
    assert "of 4 runs are finished; the same command goes on" in printed
    assert not (out / "compare.md").exists()

    second = start(recipe)
    printed, _ = second.communicate(timeout=480)
    assert second.returncode == 0, printed
    assert (
        sorted(name for name in EXPECTED if (out / name / "evaluation.json").is_file()) == EXPECTED
    )
    numbers = json.loads((out / "compare.json").read_text())
    assert [arm["updates"] for arm in numbers["arms"]] == [[6, 6], [6, 6]]
    assert [arm["seeds"] for arm in numbers["arms"]] == [[0, 1], [0, 1]]
    lora, full = numbers["arms"]
    assert lora["tokens"] == full["tokens"]
    for seed in ("0", "1"):
        values = [arm["metrics"][0]["values"][seed] for arm in (lora, full)]
        difference = full["metrics"][0]["differences"][seed]
        assert difference == pytest.approx(values[1] - values[0])
        # of random weights, LoRA learns next to nothing in six steps, full training something
        assert difference < 0
    assert (out / "compare.md").read_text() in printed


def test_the_numbers_are_those_of_evaluate_at_every_checkpoint(recipe: Path) -> None:
    run = recipe.parent / "out/full/seed-1"
    numbers = json.loads((run / "evaluation.json").read_text())
    assert [one["step"] for one in [*numbers["earlier"], numbers]] == [3, 6]
    command = [sys.executable, "-m", "ds_train", "evaluate", str(run)]
    output = recipe.parent / "again.json"
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = json.loads(output.read_text())
    assert again["loss"] == pytest.approx(numbers["loss"], rel=1e-6)
    assert again["sources"].keys() == numbers["sources"].keys() == {"short", "long"}


def test_arms_of_a_seed_start_from_the_same_weights(recipe: Path) -> None:
    """A learning rate of 0 leaves the weights as they began, whatever the arm."""
    out = recipe.parent / "same"
    arms = "compare.arms={a: {}, b: {train.max_steps: 2}}"
    rest = ["model.init=random", "train.learning_rate=0", "train.max_steps=1", "compare.seeds=[5]"]
    done = start(
        recipe, arms, "compare.baseline=a", "compare.metrics=[loss]", f"output_dir={out}", *rest
    )
    printed, _ = done.communicate(timeout=480)
    assert done.returncode == 0, printed
    weights = {arm: parameter(out / arm / "seed-5") for arm in "ab"}
    assert weights["a"] == weights["b"]
    # drawn for this run, not those of the model folder
    assert weights["a"] != parameter(recipe.parent / "out/full/seed-0")
    numbers = json.loads((out / "compare.json").read_text())
    assert numbers["arms"][1]["metrics"][0]["differences"] == {"5": 0.0}


def parameter(run: Path) -> list[float]:
    """Some weights of a run's last checkpoint."""
    folder = complete_checkpoints(RunPaths(run))[-1]
    numbers: list[float] = StateFiles(folder).read("model.embed_tokens.weight")[5].tolist()
    return numbers
