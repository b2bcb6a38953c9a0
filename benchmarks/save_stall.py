"""How long a run waits for its checkpoints, written at once and behind the steps.

    python benchmarks/save_stall.py --work /tmp/save_stall

Real runs of `ds-train train` on two CPU processes, two whole models (fp32 state of three times
their size), ZeRO-2, a checkpoint every five steps, in turns. What a run says it has
waited for each checkpoint is read from what it printed; the last one, which every run waits for, is
left out. Writes benchmarks/results/save_stall.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

import yaml

HERE = Path(__file__).resolve().parent
ROUNDS, STEPS, EVERY = 2, 40, 10
NUM_FOLLOWING = 4
"""Steps after a checkpoint that are looked at."""
SIZES = {
    "small": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 12},
    "large": {"hidden_size": 512, "intermediate_size": 2304, "num_hidden_layers": 12},
}


def write_inputs(work: Path) -> None:
    """The models, and rows to train on."""
    from ds_train.model.tiny import save_tiny

    for name, shape in SIZES.items():
        save_tiny(work / name, "llama", **shape)
    draw = random.Random(0)
    words = ["red", "green", "blue", "one", "two", "three", "stone", "river"]
    rows = [{"text": " ".join(draw.choices(words, k=100))} for _ in range(200)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass
class Seconds:
    """Of several runs."""

    waited: list[float] = field(default_factory=list)
    """For each checkpoint but the last ones."""
    following: list[float] = field(default_factory=list)
    """The steps right after these, with what they waited for a copy."""
    other: list[float] = field(default_factory=list)
    """All other steps but the first two."""


def run(work: Path, size: str, number: int, seconds: Seconds, *, background: bool) -> None:
    """One run of the tool."""
    folder = work / f"{size}-{number}-{'behind' if background else 'at once'}"
    recipe = {
        "output_dir": str(folder),
        "model": {"name_or_path": str(work / size), "dtype": "fp32"},
        "adapter": {"method": "full"},
        "data": {
            "train": [{"path": str(work / "rows.jsonl"), "format": "text"}],
            "max_length": 128,
            "cache_dir": str(work / "cache"),
        },
        "train": {"global_batch_size": 8, "per_device_train_batch_size": 4, "max_steps": STEPS},
        "checkpoint": {"every": f"{EVERY} steps", "background": background, "rehearse": False},
        "report": {"progress": "plain"},
        "cluster": {"processes_per_node": 2},
    }
    path = work / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ds_train", "train", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    found = re.findall(r"^checkpoint: .*step-0*(\d+), waited ([\d.]+) s$", done.stderr, re.M)
    seconds.waited += [float(waited) for step, waited in found if int(step) < STEPS]
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(text)
        if record["type"] == "step" and record["step"] > 2:
            number, place = divmod(record["step"] - 1, EVERY)
            follows = number > 0 and place < NUM_FOLLOWING
            (seconds.following if follows else seconds.other).append(record["seconds"])


def main() -> None:
    """Measure in turns, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work: Path = parser.parse_args().work
    work.mkdir(parents=True)
    write_inputs(work)
    lines = [
        "# What a run waits for its checkpoints",
        "",
        f"{datetime.date.today()}; {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores; {ROUNDS} runs each in turns, {STEPS // EVERY - 1} checkpoints a "
        f"run. Copies and writes take their share of the cores on which the {NUM_FOLLOWING} steps "
        "after a checkpoint are computed.",
        "",
        "| model (state is three times as large) | saved | waited, median | least | most "
        "| steps after it, mean | other steps, mean |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for size in SIZES:
        megabytes = sum(file.stat().st_size for file in (work / size).glob("*.safetensors")) / 1e6
        found = {False: Seconds(), True: Seconds()}
        for number in range(ROUNDS):
            for background in (number % 2 == 0, number % 2 == 1):
                run(work, size, number, found[background], background=background)
        for background, seconds in found.items():
            how = "behind the steps" if background else "at once"
            lines.append(
                f"| {megabytes:.0f} MB | {how} | {median(seconds.waited):.2f} s | "
                f"{min(seconds.waited):.2f} s | {max(seconds.waited):.2f} s | "
                f"{mean(seconds.following):.3f} s | {mean(seconds.other):.3f} s |"
            )
    text = "\n".join(lines) + "\n"
    (HERE / "results" / "save_stall.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
