"""Pitfall: a curriculum that ends after the learning rate has begun to fall is warned about."""

from __future__ import annotations

from typing import Any

import pytest
from small_store import store_of_lengths

from ds_train.config.load import config_from_dict
from ds_train.config.run import RunConfig
from ds_train.data.order import StepPlan
from ds_train.data.row_plan import RowPlan
from ds_train.train.late import late_curriculum, likely_late_curriculum
from ds_train.train.schedule import Schedule, num_warmup_steps

LENGTHS = [10] * 40
"""One sample a row, two rows a step: 20 steps of 20 tokens make an epoch of 400 tokens."""


def config(train: dict[str, Any], curriculum: dict[str, Any] | None) -> RunConfig:
    raw: dict[str, Any] = {
        "output_dir": "runs/x",
        "model": {"name_or_path": "org/model"},
        "data": {"train": [{"path": "org/data"}], "packing": False},
        "train": {"global_batch_size": 2, **train},
    }
    return config_from_dict(raw if curriculum is None else raw | {"curriculum": curriculum})


def exact(recipe: RunConfig, lengths: list[int] = LENGTHS) -> str | None:
    """The warning with the plan at hand."""
    train = recipe.train
    rows = RowPlan.uniform(store_of_lengths(lengths), recipe.data, 0, [1.0])
    plan = StepPlan(rows, 2, train.num_train_epochs)
    total = plan.total_steps(train)
    schedule = Schedule(
        train,
        total_steps=total,
        warmup=num_warmup_steps(train, plan, total),
        tokens_before=plan.tokens_before,
    )
    return late_curriculum(recipe, schedule, plan)


def pacing(**settings: Any) -> dict[str, Any]:
    return {"pacing": settings}


WSD = {"lr_scheduler_type": "wsd", "decay_fraction": 0.5}
STEPS, TOKENS, EPOCHS = {"max_steps": 20}, {"max_tokens": 400}, {"num_train_epochs": 1}

LATE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (STEPS, {}),  # cosine falls from the first step on, and end_at is 0.5
    (STEPS, pacing(end_at=1.0)),
    (STEPS | {"warmup_steps": 2}, pacing(end_at=0.15)),
    (STEPS | WSD, pacing(end_at=0.55)),
    (STEPS | WSD, pacing(end_at="11 steps")),
    (TOKENS | WSD, pacing(end_at=0.51)),
    (TOKENS | WSD, pacing(end_at="202 tokens")),
    (EPOCHS | WSD, pacing(end_at=0.6)),
    (EPOCHS | WSD, pacing(end_at="0.6 epochs")),
    (STEPS | WSD, pacing(type="discrete", levels=[0.3, 1.0], at=[0.6])),
    (STEPS | WSD, pacing(type="step", end_at=0.6)),
    (STEPS | WSD, {"order": "hard_to_easy", "pacing": {"end_at": 0.6}}),
    (STEPS | WSD, {"order": "uniform", "seq_len": {"start": 8, "end_at": 0.6}}),
    (STEPS | WSD | {"min_lr_ratio": 0.1}, pacing(end_at=0.6)),
    # the pool ends in time, the growing rows do not
    (STEPS | WSD, {"pacing": {"end_at": 0.2}, "seq_len": {"start": 8, "end_at": 0.6}}),
]

IN_TIME: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    (STEPS, None),
    (STEPS | {"lr_scheduler_type": "constant"}, pacing(end_at=1.0)),
    (STEPS | {"min_lr_ratio": 0.3}, pacing(end_at=1.0)),
    (STEPS | {"min_lr_ratio": 0.33}, {}),
    (STEPS | {"warmup_steps": 10}, pacing(end_at=0.5)),
    (STEPS | {"warmup_steps": 0.5}, pacing(end_at="10 steps")),
    (STEPS | WSD, pacing(end_at=0.5)),
    (STEPS | WSD, pacing(end_at="10 steps")),
    ({"max_steps": 33} | WSD, pacing(end_at=0.5)),  # the decay begins at round(16.5) = 16
    ({"max_steps": 10, "lr_scheduler_type": "wsd", "decay_fraction": 0.9}, pacing(end_at=0.1)),
    (TOKENS | WSD, pacing(end_at=0.5)),
    (TOKENS | WSD, pacing(end_at="200 tokens")),
    (EPOCHS | WSD, pacing(end_at=0.5)),
    (STEPS | WSD, pacing(type="discrete", levels=[0.3, 1.0], at=[0.5])),
    (STEPS, {"order": "uniform"}),
    (STEPS, {"order": "random_pool"}),  # its last samples are no harder than its first
    (STEPS, {"window": 8}),
    (STEPS, pacing(start=1.0, end=1.0)),  # nothing is held back
]


@pytest.mark.parametrize(("train", "curriculum"), LATE)
def test_late_is_warned_about(train: dict[str, Any], curriculum: dict[str, Any]) -> None:
    recipe = config(train, curriculum)
    for warning in (exact(recipe), likely_late_curriculum(recipe)):
        assert warning is not None and warning.startswith("warning: curriculum.")


@pytest.mark.parametrize(("train", "curriculum"), IN_TIME)
def test_in_time_is_not(train: dict[str, Any], curriculum: dict[str, Any] | None) -> None:
    recipe = config(train, curriculum)
    assert exact(recipe) is None
    assert likely_late_curriculum(recipe) is None


def test_the_message_word_for_word() -> None:
    recipe = config(STEPS | {"lr_scheduler_type": "linear", "warmup_steps": 2}, pacing(end_at=0.55))
    assert exact(recipe) == (
        "warning: curriculum.pacing.end_at = 0.55: the curriculum ends at 55% of the run, and the "
        "learning rate (linear) falls from 10% on; it is at 50% of its peak there, so what the "
        "curriculum keeps for its end is learned at a small rate. Give train.min_lr_ratio (0.3 or "
        "more), or train.lr_scheduler_type: wsd with decay_fraction 0.45 or less, or end the "
        "curriculum earlier."
    )
    at_the_end = exact(config(STEPS | WSD, pacing(end_at=1.0)))
    assert at_the_end is not None
    assert "it is at 0% of its peak" in at_the_end
    assert "or train.lr_scheduler_type: constant with `ds-train export --average`," in at_the_end


@pytest.mark.parametrize("train", [STEPS, TOKENS])
def test_what_the_message_proposes_silences_it(train: dict[str, Any]) -> None:
    for remedy in (
        {"min_lr_ratio": 0.3},
        {"lr_scheduler_type": "wsd", "decay_fraction": 0.45},
        {"lr_scheduler_type": "constant"},
    ):
        assert exact(config(train, pacing(end_at=0.55))) is not None
        assert exact(config(train | remedy, pacing(end_at=0.55))) is None


def test_tokens_and_steps_are_told_apart() -> None:
    """Rows that grow: half of the steps are a fifth of the tokens."""
    lengths = [4] * 20 + [16] * 20  # 20 steps: ten of 8 tokens, ten of 32; 400 tokens
    recipe = config(STEPS | WSD, pacing(end_at="80 tokens"))
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"shuffle": False})})
    assert exact(recipe, lengths) is None  # reached with step 10, where the decay begins
    later = config(STEPS | WSD, pacing(end_at="200 tokens")).model_copy(
        update={"data": recipe.data}
    )
    warning = exact(later, lengths)
    assert warning is not None and "ends at 65% of the run" in warning  # in step 14 of 20
    # without the data nobody can tell how many steps so many tokens are
    assert likely_late_curriculum(later) is None


def test_a_run_limited_by_tokens_compares_tokens() -> None:
    """The rate falls from token 200 of 400 on, which is in the 14th of 20 steps, not the 10th."""
    lengths = [4] * 20 + [16] * 20
    data = config(TOKENS, None).data.model_copy(update={"shuffle": False})
    for steps, late in ((12, False), (13, False), (14, True)):  # 80 + 32 a step: 144, 176, 208
        place = {"pacing": {"end_at": f"{steps} steps"}}
        recipe = config(TOKENS | WSD, place).model_copy(update={"data": data})
        assert (exact(recipe, lengths) is not None) == late, steps
