"""Runs as one of the ranks: the process memory of a real training, phase by phase.

usage, with RANK and its like in the environment:
    plan_memory_worker.py TINY.json RECIPE.json RESULT.json
A tiny model is trained in the same way first, so that what libraries load, compile and cache at
their first use counts to the process and not to the model. Linux only: the high-water mark of a
process is set back between phases (/proc/self/clear_refs).
"""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from ds_train.config.run import RunConfig
from ds_train.data.prepare import prepare_data
from ds_train.engine.process_group import start_process_group, stop_process_group
from ds_train.engine.ranks import Ranks
from ds_train.train.setup import set_up
from ds_train.train.step import train_step


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest) of this process, bytes."""
    text = Path("/proc/self/status").read_text()
    (kib,) = re.findall(rf"{field}:\s+(\d+) kB", text)
    return int(kib) * 1024


def forget_peak() -> None:
    """The high-water mark becomes what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def train(config: RunConfig, ranks: Ranks) -> dict[str, Any]:
    """Set up, train the recipe's steps; what was resident, and what each phase took at most."""
    data = prepare_data(config, say=lambda text: None)
    gc.collect()
    before = resident("VmRSS")
    forget_peak()
    run = set_up(config, ranks, data, lambda text: None)
    gc.collect()
    phases = {"before": before, "set_up_peak": resident("VmHWM"), "ready": resident("VmRSS")}
    steps = []
    for step in range(run.total_steps):
        batches, objective = run.build_batches(step), run.objective(step)
        forget_peak()
        train_step(run.engine, batches, objective=objective, learning_rate=1e-4, stop=False)
        steps.append({"peak": resident("VmHWM"), "after": resident("VmRSS")})
    return {**phases, "steps": steps}


def main() -> None:
    """The tiny model, then the one that is measured."""
    torch.set_num_threads(1)
    tiny, recipe, result = (Path(one) for one in sys.argv[1:] if not one.startswith("--"))
    ranks = Ranks.from_environment()
    start_process_group(ranks)
    measured: dict[str, Any] = {}
    for file in (tiny, recipe):
        measured = train(RunConfig.model_validate(json.loads(file.read_text())), ranks)
    if ranks.is_main:
        result.write_text(json.dumps(measured))
    stop_process_group()


if __name__ == "__main__":
    main()
