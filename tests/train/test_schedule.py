"""Learning rates as tables."""

from __future__ import annotations

import math
from typing import Any

import pytest
from small_store import store_of_lengths

from ds_train.config.data import DataConfig
from ds_train.config.train import TrainConfig
from ds_train.data.order import StepPlan
from ds_train.data.row_plan import RowPlan
from ds_train.train.schedule import Schedule, num_warmup_steps
from ds_train.units import Duration


def rates(total: int, *, warmup: int | None = None, **settings: Any) -> list[float]:
    config = TrainConfig(max_steps=total, **{"learning_rate": 1.0, **settings})
    if warmup is None:
        assert not isinstance(config.warmup_steps, Duration)
        warmup = math.ceil(config.warmup_steps * (total if config.warmup_steps < 1 else 1))
    schedule = Schedule(config, total_steps=total, warmup=warmup)
    return [schedule.rate(step) for step in range(total)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr_scheduler_type": "constant"}, [1, 1, 1, 1]),
        ({"lr_scheduler_type": "constant", "warmup_steps": 2}, [0.5, 1, 1, 1]),
        ({"lr_scheduler_type": "linear", "warmup_steps": 2}, [0.5, 1, 1, 0.5]),
        ({"lr_scheduler_type": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"lr_scheduler_type": "linear", "min_lr_ratio": 0.5}, [1, 0.875, 0.75, 0.625]),
        ({"lr_scheduler_type": "cosine"}, [1, 0.8535534, 0.5, 0.1464466]),
        ({"lr_scheduler_type": "cosine", "min_lr_ratio": 0.2}, [1, 0.8828427, 0.6, 0.3171573]),
        ({"lr_scheduler_type": "wsd", "decay_fraction": 0.5}, [1, 1, 1, 0.5]),
        ({"lr_scheduler_type": "wsd", "decay_fraction": 0.5, "warmup_steps": 1}, [1, 1, 1, 0.5]),
        ({"lr_scheduler_type": "constant", "warmup_steps": 0.5}, [0.5, 1, 1, 1]),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": "200 steps"},
            [0.005, 0.01, 0.015, 0.02],
        ),
    ],
)
def test_table(settings: dict[str, Any], expected: list[float]) -> None:
    assert rates(4, **settings) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [(0, 0), (3, 3), (0.3, 2), ("5 steps", 5), ("40 tokens", 2), ("41 tokens", 3), ("1 epoch", 3)],
)
def test_warmup_becomes_whole_steps(warmup: object, expected: int) -> None:
    """Six samples of 10 tokens, one a row, two rows a step: 20 tokens a step, 3 steps an epoch."""
    data = DataConfig.model_validate({"train": [{"path": "x.jsonl"}], "packing": False})
    plan = StepPlan(RowPlan.uniform(store_of_lengths([10] * 6), data, 0, [1.0]), 2)
    config = TrainConfig.model_validate({"max_steps": 6, "warmup_steps": warmup})
    assert num_warmup_steps(config, plan, 6) == expected


def test_decay_begins_where_a_warmup_in_tokens_ends() -> None:
    """It is the same whatever unit the warm-up was given in: no fall from the peak to the curve."""
    assert rates(4, warmup=2, lr_scheduler_type="linear") == pytest.approx([0.5, 1, 1, 0.5])


def test_a_run_shorter_than_its_warmup_never_exceeds_the_peak() -> None:
    assert max(rates(3, warmup_steps=10)) == pytest.approx(0.3)


def test_after_the_end_the_rate_is_the_lowest() -> None:
    config = TrainConfig(max_steps=4, learning_rate=1.0, min_lr_ratio=0.1)
    assert Schedule(config, total_steps=4, warmup=0).rate(9) == pytest.approx(0.1)


GROWING = [10, 10, 20, 40]
"""Tokens of each step: rows grow, as under a curriculum by length."""


def by_tokens(**settings: Any) -> list[float]:
    config = TrainConfig(max_tokens=80, **{"learning_rate": 1.0, **settings})
    before = [sum(GROWING[:step]) for step in range(5)]
    schedule = Schedule(
        config,
        total_steps=4,
        warmup=settings.get("warmup_steps", 0),
        tokens_before=lambda step: before[step],
    )
    return [schedule.rate(step) for step in range(4)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr_scheduler_type": "linear"}, [1, 0.875, 0.75, 0.5]),
        ({"lr_scheduler_type": "linear", "min_lr_ratio": 0.5}, [1, 0.9375, 0.875, 0.75]),
        ({"lr_scheduler_type": "cosine"}, [1, 0.9619398, 0.8535534, 0.5]),
        # the warm-up goes by steps; the decay begins at the tokens that stand before its end
        ({"lr_scheduler_type": "linear", "warmup_steps": 2}, [0.5, 1, 1, 2 / 3]),
        # stays until token 20 of 80, not until step 1 of 4
        ({"lr_scheduler_type": "wsd", "decay_fraction": 0.75}, [1, 1, 1, 2 / 3]),
        ({"lr_scheduler_type": "constant"}, [1, 1, 1, 1]),
    ],
)
def test_a_run_limited_by_tokens_decays_by_tokens(
    settings: dict[str, Any], expected: list[float]
) -> None:
    assert by_tokens(**settings) == pytest.approx(expected, abs=1e-6)


def test_decay_by_tokens_wants_to_know_them() -> None:
    config = TrainConfig(max_tokens=80, lr_scheduler_type="linear")
    with pytest.raises(ValueError, match="goes by tokens_before"):
        Schedule(config, total_steps=4, warmup=0)
