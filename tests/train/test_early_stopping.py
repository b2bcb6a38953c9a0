"""What counts as better, and when a run has seen enough evaluations that were not."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.config.train import EarlyStoppingConfig
from ds_train.errors import ConfigError
from ds_train.train.early import judge

START = CheckpointFacts(0, 0, 0, None, "base", "data", evaluated_step=-1)


def judged(values: list[float], metric: str = "loss", **settings: Any) -> list[CheckpointFacts]:
    """Facts after each evaluation."""
    early = EarlyStoppingConfig(metric=metric, **settings)
    facts, seen = START, []
    for value in values:
        facts, _ = judge(facts, {metric: value}, early)
        seen.append(facts)
    return seen


def test_worked_example() -> None:
    seen = judged([3.0, 2.95, 2.85, 2.8, 2.9], patience=2, min_delta=0.1)
    assert [facts.num_not_better for facts in seen] == [0, 1, 0, 1, 2]
    assert [facts.ended_early for facts in seen] == [False, False, False, False, True]
    assert seen[-1].best_loss == 2.8 and seen[-1].improved_value == 2.85


def test_small_steps_add_up_to_an_improvement() -> None:
    seen = judged([3.0, 2.96, 2.92, 2.88], patience=3, min_delta=0.1)
    assert [facts.num_not_better for facts in seen] == [0, 1, 2, 0]


def test_accuracy_must_rise() -> None:
    seen = judged([0.0, 0.5, 0.4, 0.5], metric="token_accuracy", patience=2)
    assert [facts.best_value for facts in seen] == [0.0, 0.5, 0.5, 0.5]
    assert seen[-1].ended_early and seen[-1].best_loss is None


def test_nan_is_never_better() -> None:
    seen = judged([math.nan, 2.0, math.nan, math.nan], patience=2)
    assert [facts.best_loss for facts in seen] == [None, 2.0, 2.0, 2.0]
    assert seen[-1].ended_early


def test_without_early_stopping_only_the_best_is_known() -> None:
    facts, best = judge(START, {"loss": 2.0}, None)
    assert best and facts.best_loss == 2.0 and facts.evaluated_step == 0
    facts, best = judge(facts, {"loss": 2.5}, None)
    assert not best and facts.best_loss == 2.0 and not facts.ended_early


def test_a_metric_that_is_not_measured() -> None:
    with pytest.raises(ConfigError, match=r"early_stopping\.metric = bits_per_byte: the held-out"):
        judge(
            START, {"loss": 2.0, "bits_per_byte": None}, EarlyStoppingConfig(metric="bits_per_byte")
        )


def test_facts_survive_json_and_leave_out_what_is_usual() -> None:
    usual = json.loads(CheckpointFacts(0, 0, 0, None, "base", "data").to_json())
    assert "num_not_better" not in usual and usual["best_loss"] is None
    for facts in judged([0.0, 0.5, 0.4], metric="token_accuracy"):
        assert CheckpointFacts(**json.loads(facts.to_json())) == facts
