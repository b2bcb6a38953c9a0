"""What is done between steps, in which order, and what an earlier start has left undone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.config.evaluate import EvaluateConfig
from ds_train.config.train import EarlyStoppingConfig
from ds_train.train import between
from ds_train.train.between import BetweenSteps
from ds_train.train.due import is_due
from ds_train.units import parse_duration

START = CheckpointFacts(0, 0, 0, None, "base", "data", evaluated_step=-1)


class Bench:
    """A run without an engine, whose evaluations and checkpoints are noted as words."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, best: bool = False, **settings: Any):
        self.done: list[str] = []
        early = settings.pop("early_stopping", None)
        every = {key: settings.pop(key, None) for key in ("evaluate", "tasks", "save")}
        every = {key: text and parse_duration(text) for key, text in every.items()}
        config = SimpleNamespace(
            evaluate=EvaluateConfig(every=every["evaluate"], **settings),
            checkpoint=SimpleNamespace(every=every["save"], background=True, best=True),
            train=SimpleNamespace(early_stopping=early),
        )
        plan = SimpleNamespace(tokens_before=lambda step: 100 * step, epoch=lambda step: step / 4)
        run: Any = SimpleNamespace(config=config, plan=plan, data=SimpleNamespace(evaluated=1))
        saving: Any = SimpleNamespace(
            save=self.save, make_best=lambda step: self.done.append(f"best {step}")
        )
        tasks: Any = SimpleNamespace(
            is_due=lambda *at: is_due(every["tasks"], *at),
            is_owed=lambda *at: is_due(every["tasks"], *at),
            evaluate=lambda step: [f"tasks {step}"],
        )
        monkeypatch.setattr(
            between,
            "evaluate_held_out",
            lambda run, facts: (
                replace(facts, evaluated_step=facts.step),
                Record(f"evaluation {facts.step}", best),
            ),
        )
        self.between = BetweenSteps(run, saving, tasks, lambda what: self.done.append(str(what)))

    def save(self, facts: CheckpointFacts, **how: bool) -> CheckpointFacts:
        self.done.append(" ".join(["save", str(facts.step), *(key for key in how if how[key])]))
        return facts


class Record(str):
    """What an evaluation reports, and whether it was the best so far."""

    def __new__(cls, text: str, best: bool) -> Record:
        made = super().__new__(cls, text)
        made.best = best
        return made

    best: bool


def test_evaluations_come_before_the_checkpoint_that_knows_of_them(monkeypatch) -> None:
    bench = Bench(monkeypatch, evaluate="2 steps", tasks="4 steps", save="2 steps")
    for step in (1, 2, 4):
        facts = bench.between.after_step(replace(START, step=step))
        assert facts.evaluated_step == (step if step > 1 else -1)
    assert bench.done == [
        *("evaluation 2", "save 2 in_background"),
        *("evaluation 4", "tasks 4", "save 4 in_background"),
    ]


def test_the_best_so_far_is_saved_at_once(monkeypatch) -> None:
    bench = Bench(monkeypatch, best=True, evaluate="2 steps")
    bench.between.after_step(replace(START, step=2))
    assert bench.done == ["evaluation 2", "save 2", "best 2"]


@pytest.mark.parametrize("early", [None, EarlyStoppingConfig(patience=2)])
def test_the_untrained_model_is_a_checkpoint_only_where_a_run_may_come_back_to_it(
    monkeypatch, early: EarlyStoppingConfig | None
) -> None:
    bench = Bench(monkeypatch, best=True, early_stopping=early, at_start=True)
    bench.between.before_first(START)
    saved = [] if early is None else ["save 0", "best 0"]
    assert bench.done == ["evaluation 0", *saved, "tasks 0"]


@pytest.mark.parametrize(
    ("step", "evaluated", "done"),
    [
        (4, 2, ["evaluation 4", "save 4 again", "tasks 4"]),  # stopped before it was made
        (4, 4, ["tasks 4"]),
        (4, None, ["tasks 4"]),  # an old checkpoint, which does not know
        (3, 2, []),
        (0, -1, []),
    ],
)
def test_what_an_earlier_start_owes_is_made_first(
    monkeypatch, step: int, evaluated: int | None, done: list[str]
) -> None:
    bench = Bench(monkeypatch, evaluate="2 steps", tasks="4 steps")
    bench.between.before_first(replace(START, step=step, evaluated_step=evaluated))
    assert bench.done == done


@pytest.mark.parametrize("ended_early", [False, True])
def test_the_end(monkeypatch, ended_early: bool) -> None:
    bench = Bench(monkeypatch)
    bench.between.after_last(replace(START, step=7, ended_early=ended_early))
    assert bench.done == [*([] if ended_early else ["evaluation 7"]), "tasks 7", "save 7"]
