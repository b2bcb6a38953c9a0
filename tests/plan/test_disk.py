"""How many checkpoints a run holds: the rehearsal before the first step and the plan agree."""

from __future__ import annotations

from typing import Any

import pytest

from ds_train.config.run import RunConfig
from ds_train.plan.disk import checkpoints_held


@pytest.mark.parametrize(
    ("checkpoint", "evaluate", "is_evaluated", "number"),
    [
        ({"every": "5 steps"}, {}, True, 3),
        ({"every": "5 steps", "best": False}, {}, True, 2),
        ({"every": "5 steps"}, {}, False, 2),
        ({"keep": 5}, {}, True, 2),
        ({"keep": 5, "best": False}, {}, True, 1),
        ({"keep": 5}, {"every": "5 steps"}, True, 6),  # each evaluation may make a best one
        ({"keep": 5}, {"every": "5 steps"}, False, 1),
    ],
)
def test_checkpoints_held(
    checkpoint: dict[str, Any], evaluate: dict[str, Any], is_evaluated: bool, number: int
) -> None:
    config = RunConfig.model_validate(
        {
            "output_dir": "run",
            "model": {"name_or_path": "model"},
            "data": {"train": [{"path": "x.jsonl"}]},
            "train": {"max_steps": 10, "global_batch_size": 8},
            "checkpoint": checkpoint,
            "evaluate": evaluate,
        }
    )
    assert checkpoints_held(config, is_evaluated=is_evaluated) == number
