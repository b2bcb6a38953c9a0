"""What a person reads before a launch says everything that changes what is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ds_train.config.run import RunConfig
from ds_train.launch.world import World
from ds_train.plan.batch import batch_arithmetic
from ds_train.plan.ds_config import resolve_ds_config
from ds_train.plan.validate import Plan, summary

Make = Callable[..., RunConfig]


def line(config: RunConfig, name: str) -> str:
    batch = batch_arithmetic(config, 1)
    plan = Plan(
        config, World({"localhost": [0]}, None, 0, None), batch, resolve_ds_config(config, batch)
    )
    return next(text for text in summary(plan) if text.startswith(name))


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ({}, "trains  LoRA, rank 8, alpha 16, on all-linear"),
        (
            {"use_rslora": True, "init": "pissa", "lora_plus_lr_ratio": 16, "r": 4},
            "trains  LoRA, rank 4, alpha 16, rank-stabilised, pissa start, LoRA+ 16, on all-linear",
        ),
        (
            {"use_dora": True, "modules_to_save": ["lm_head"]},
            "trains  DoRA, rank 8, alpha 16, on all-linear; whole: lm_head",
        ),
        ({"method": "ia3", "modules_to_save": ["lm_head"]}, "trains  IA3; whole: lm_head"),
    ],
)
def test_what_trains(make: Make, adapter: dict[str, Any], expected: str) -> None:
    assert line(make(adapter=adapter), "trains") == expected


def test_what_it_starts_from(make: Make) -> None:
    assert line(make(), "model") == "model   org/model, bf16"
    config = make(
        model={"init": "random", "gradient_checkpointing": True}, adapter={"method": "full"}
    )
    assert line(config, "model") == (
        "model   org/model, bf16, random weights, gradient checkpointing"
    )


def test_how_long(make: Make) -> None:
    def length(**train: object) -> str:
        return line(make(train={"max_steps": None, **train}), "length")

    assert length(num_train_epochs=1) == "length  1 epoch"
    assert length(num_train_epochs=1.5) == "length  1.5 epochs"
    assert length(max_tokens="2M") == "length  2,000,000 tokens"
