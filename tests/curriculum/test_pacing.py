"""Pacing against the table of formulas, worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from curriculum_plans import config_of

from ds_train.config.curriculum import CurriculumConfig
from ds_train.curriculum.pacing import RunLength, competence, curriculum_end, paced
from ds_train.data.epochs import Totals
from ds_train.errors import ConfigError
from ds_train.units import Duration

# kind -> value at c0 = 0.1, c1 = 1 and tau = 0, 0.25, 0.5, 1
TABLE: dict[str, tuple[float, float, float, float]] = {
    "linear": (0.1, 0.325, 0.55, 1.0),
    "root": (0.1, math.sqrt(0.2575), math.sqrt(0.505), 1.0),
    "wu_root": (0.1, 0.55, 0.1 + 0.9 * math.sqrt(0.5), 1.0),
    "quad": (0.1, 0.15625, 0.325, 1.0),
    "exp": (
        0.1,
        0.1 + 0.9 * (math.exp(2.5) - 1) / (math.exp(10) - 1),
        0.1 + 0.9 * (math.exp(5) - 1) / (math.exp(10) - 1),
        1.0,
    ),
    "log": (
        0.1,
        0.1 + 0.9 * (1 + 0.1 * math.log(0.25 + math.exp(-10))),
        0.1 + 0.9 * (1 + 0.1 * math.log(0.5 + math.exp(-10))),
        1.0,
    ),
    "step": (0.1, 0.1, 0.1, 1.0),
}
STEPS = RunLength(Duration(100, "steps"), global_batch_size=8, num_samples=400)


def _at(steps: float) -> Totals:
    rows = int(steps * 8)
    return Totals(rows=rows, samples=rows, tokens=10 * rows)


def _competence(steps: float, length: RunLength = STEPS, **settings: Any) -> float:
    then = settings.pop("then", "uniform")
    curriculum = CurriculumConfig.model_validate({"pacing": settings, "then": then})
    return competence(curriculum, length, _at(steps))


@pytest.mark.parametrize("kind", TABLE)
def test_the_formulas_of_the_table(kind: Any) -> None:
    for tau, expected in zip((0, 0.25, 0.5, 1), TABLE[kind], strict=True):
        assert paced(kind, tau, 0.1, 1.0) == pytest.approx(expected, rel=1e-12)


def test_two_roots_are_told_apart() -> None:
    assert round(paced("root", 0.25, 0.1, 1.0), 3) == 0.507
    assert round(paced("wu_root", 0.25, 0.1, 1.0), 3) == 0.55
    assert paced("root", 0.25, 0.1, 1.0, p=3) == pytest.approx((0.001 + 0.999 / 4) ** (1 / 3))


@pytest.mark.parametrize("kind", TABLE)
def test_never_above_one_nor_outside_its_ends(kind: Any) -> None:
    for number in range(-10, 120):
        assert 0.2 <= paced(kind, number / 100, 0.2, 0.7) <= 0.7 + 1e-15
        assert _competence(number / 2 + 5, type=kind, start=0.1, end_at=0.5) <= 1


@pytest.mark.parametrize("kind", TABLE)
def test_a_falling_pacing_falls(kind: Any) -> None:
    values = [paced(kind, tau / 20, 1.0, 0.25) for tau in range(21)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(1.0) and values[-1] == pytest.approx(0.25)


def test_what_follows_the_curriculum() -> None:
    pacing = {"type": "linear", "start": 0.2, "end": 0.6, "end_at": 0.5}
    assert _competence(25, **pacing) == pytest.approx(0.4)
    assert _competence(50, **pacing) == 1.0
    assert _competence(50, then="continue", **pacing) == pytest.approx(0.6)
    assert _competence(99, then="continue", **pacing) == pytest.approx(0.6)


def test_levels_one_after_another_also_falling() -> None:
    levels = {"type": "discrete", "levels": [1.0, 0.5, 0.1], "at": [0.2, 0.6]}
    assert [_competence(step, **levels) for step in (0, 19, 20, 59, 60, 99)] == [
        *(1.0, 1.0, 0.5, 0.5, 0.1, 0.1),
    ]
    by_length = {"type": "discrete", "levels": [0.1, 1.0], "at": ["800 tokens"]}
    assert [_competence(step, **by_length) for step in (9, 10)] == [0.1, 1.0]


@pytest.mark.parametrize(
    ("end_at", "steps"), [("40 steps", 20), ("3200 tokens", 20), ("1 epoch", 25), (0.3, 15)]
)
def test_lengths_in_any_unit(end_at: Any, steps: float) -> None:
    assert _competence(steps, start=0.1, end_at=end_at) == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("limit", "steps"),
    [(Duration(100, "steps"), 50), (Duration(8000, "tokens"), 50), (Duration(2, "epochs"), 50)],
)
def test_progress_is_of_what_limits_the_run(limit: Duration, steps: int) -> None:
    length = RunLength(limit, global_batch_size=8, num_samples=400)
    assert length.progress(_at(steps)) == pytest.approx(0.5)
    assert length.progress(_at(1000)) == 1.0


def test_the_unit_may_be_demanded() -> None:
    assert RunLength.of(config_of({"unit": "steps"}), 8, 100).limit == Duration(50, "steps")
    by_epochs = config_of({"unit": "samples"}, train={"num_train_epochs": 3})
    assert RunLength.of(by_epochs, 8, 100).limit == Duration(3, "epochs")
    with pytest.raises(ConfigError) as caught:
        RunLength.of(config_of({"unit": "tokens"}), 8, 100)
    assert str(caught.value) == (
        "curriculum.unit = tokens: the run's length is given by train.max_steps, so its progress "
        "is known in steps; give train.max_tokens instead, or remove curriculum.unit."
    )


def test_where_a_curriculum_ends() -> None:
    ends = [
        ({"end_at": 0.3}, 0.3),
        ({"end_at": "5 steps"}, Duration(5, "steps")),
        ({"type": "discrete", "levels": [0.1, 0.5, 1], "at": [0.2, 0.4]}, 0.4),
        ({"type": "discrete", "levels": [0.1]}, 0.0),
    ]
    for pacing, expected in ends:
        curriculum = CurriculumConfig.model_validate({"pacing": pacing})
        assert curriculum_end(curriculum.pacing) == expected
