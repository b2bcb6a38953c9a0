"""Runs as one of the ranks: the collectives of real training steps, counted.

usage, with RANK and its like in the environment: plan_worker.py PLAN.json
The plan is a list of {"name", "recipe"}; NAME.json gets, for each of the recipe's steps, what
DeepSpeed's communication logger saw: {collective: {bytes of a message: how often}}.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch

from ds_train.config.run import RunConfig
from ds_train.data.prepare import prepare_data
from ds_train.engine.process_group import start_process_group, stop_process_group
from ds_train.engine.ranks import Ranks
from ds_train.train.setup import set_up
from ds_train.train.step import train_step

Calls = dict[str, dict[int, int]]


def count_steps(item: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Train `train.max_steps` steps and count each step's collectives."""
    config = RunConfig.model_validate(item["recipe"])
    logger = deepspeed.comm.comm.comms_logger
    run = set_up(config, ranks, prepare_data(config, say=lambda text: None), lambda text: None)
    steps = []
    for step in range(run.total_steps):
        batches = run.build_batches(step)
        deepspeed.comm.configure(enabled=True, prof_all=True)
        logger.comms_dict = {}
        train_step(
            run.engine, batches, objective=run.objective(step), learning_rate=1e-4, stop=False
        )
        steps.append(_calls(logger.get_raw_data()))
        deepspeed.comm.configure(enabled=False)
    return {"steps": steps, "ds_config": run.engine._engine.config}


def _calls(raw: dict[str, Any]) -> Calls:
    return {name: {size: entry[0] for size, entry in of.items()} for name, of in raw.items()}


def work_through(do: Callable[[dict[str, Any], Ranks], dict[str, Any]]) -> None:
    """Every item of the plan (the first argument), in one process group; what `do` returns goes to
    NAME.json beside the plan."""
    torch.set_num_threads(1)
    plan_file = Path(next(a for a in sys.argv[1:] if not a.startswith("--")))
    ranks = Ranks.from_environment()
    start_process_group(ranks)
    for item in json.loads(plan_file.read_text()):
        try:
            result = do(item, ranks)
        except Exception:  # noqa: BLE001 (the others would wait for ever)
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            os._exit(1)
        if ranks.is_main:
            (plan_file.parent / f"{item['name']}.json").write_text(json.dumps(result))
    stop_process_group()


if __name__ == "__main__":
    work_through(count_steps)
