"""Learning rates as tables."""

from __future__ import annotations

from typing import Any

import pytest

from ds_train.config.train import TrainConfig
from ds_train.train.schedule import Position, learning_rate


def rates(total: int, *, tokens_per_step: int = 100, **settings: Any) -> list[float]:
    config = TrainConfig(max_steps=total, **{"learning_rate": 1.0, **settings})
    return [
        learning_rate(config, Position(step, total, step * tokens_per_step, step / 4))
        for step in range(total)
    ]


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


def test_warmup_in_tokens() -> None:
    got = rates(4, lr_scheduler_type="constant", warmup_steps="200 tokens")
    assert got == pytest.approx([1 / 200, 101 / 200, 1.0, 1.0])


def test_warmup_in_epochs() -> None:
    got = rates(4, lr_scheduler_type="constant", warmup_steps="0.5 epochs")
    assert got == pytest.approx([0, 0.5, 1.0, 1.0], abs=1e-6)


def test_a_run_shorter_than_its_warmup_never_exceeds_the_peak() -> None:
    assert max(rates(3, warmup_steps=10)) == pytest.approx(0.3)


def test_after_the_end_the_rate_is_the_lowest() -> None:
    config = TrainConfig(max_steps=4, learning_rate=1.0, min_lr_ratio=0.1)
    assert learning_rate(config, Position(9, 4, 900, 2.0)) == pytest.approx(0.1)
