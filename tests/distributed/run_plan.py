"""The main loop of a worker: what the plan lists, one after the other, in one process group."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ds_train.engine.process_group import start_process_group, stop_process_group
from ds_train.engine.ranks import Ranks


def run_plan(do: Callable[[dict[str, Any], Path, Ranks], dict[str, Any]]) -> None:
    """Do every item of the plan (the first argument, a JSON list) in order.

    `do` gets the item, the plan's file and the ranks. What it returns goes to NAME.json beside the
    plan, by the main rank. A defect goes there from the rank that has it, which ends the process:
    the others would wait for it for ever.
    """
    torch.set_num_threads(1)
    plan_file = Path(next(a for a in sys.argv[1:] if not a.startswith("--")))
    ranks = Ranks.from_environment()
    start_process_group(ranks)
    for item in json.loads(plan_file.read_text()):
        try:
            result = do(item, plan_file, ranks)
        except Exception:  # noqa: BLE001 (a defect is a result too)
            result = {"error": traceback.format_exc(), "kind": "defect"}
        if ranks.is_main or result.get("kind") == "defect":
            (plan_file.parent / f"{item['name']}.json").write_text(json.dumps(result))
        if result.get("kind") == "defect":
            os._exit(1)
    stop_process_group()
