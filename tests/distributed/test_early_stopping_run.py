"""Runs that end early: alike on any ranks, resumed or not, with the best checkpoint as result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distributed import scenarios
from distributed.conftest import Results, launch
from ds_train.checkpoint.export import export_command
from ds_train.checkpoint.folder import (
    chosen_checkpoint,
    latest_checkpoint,
    read_facts,
)
from ds_train.checkpoint.pieces import StateFiles
from ds_train.paths import RunPaths
from ds_train.report.record import EvaluationRecord, read_records

pytestmark = pytest.mark.distributed

EARLY: dict[str, Any] = {
    "adapter.method": "full",
    "train.learning_rate": 0.03,  # too high: it gets better, then worse
    "train.lr_scheduler_type": "constant",
    "train.max_steps": 30,
    "train.early_stopping": {"patience": 2},
    "evaluate.every": "2 steps",
    "evaluate.at_start": True,
    "data.limit": {"samples": 9},
    "checkpoint.keep": 1,
}
HOPELESS = {**EARLY, "train.learning_rate": 1.0}
# torch's Adafactor learns at any rate, so its untrained state is saved and never the best one
ADAFACTOR = {**EARLY, "train.optim": "adafactor", "engine.preset": "zero0"}
PLAIN_ADAFACTOR = {
    key: value
    for key, value in ADAFACTOR.items()
    if key not in ("train.early_stopping", "evaluate.every", "evaluate.at_start")
}


@pytest.fixture(scope="module")
def two(inputs: Path) -> Results:
    plan = [scenarios.scenario(inputs, "early", EARLY)]
    plan.append(scenarios.scenario(inputs, "early-again", EARLY, run="early"))
    # the signal comes in a step after which an evaluation is due: it is made after the resume
    for step in (3, 4):
        name = f"early-cut-{step}"
        plan.append(scenarios.scenario(inputs, name, EARLY, stop_after=step))
        plan.append(scenarios.scenario(inputs, f"{name}-on", EARLY, run=name))
    plan.append(scenarios.scenario(inputs, "hopeless", HOPELESS))
    plan.append(scenarios.scenario(inputs, "hopeless-z3", {**HOPELESS, "engine.preset": "zero3"}))
    return launch(inputs, "early-two", plan, num_ranks=2)


@pytest.fixture(scope="module")
def one(inputs: Path, two: Results) -> Results:
    plan = [
        scenarios.scenario(inputs, "early-one", {**EARLY, "engine.preset": "zero0"}),
        scenarios.scenario(inputs, "adafactor-early", ADAFACTOR),
        scenarios.scenario(inputs, "adafactor-plain", {**PLAIN_ADAFACTOR, "train.max_steps": 6}),
    ]
    return launch(inputs, "early-one", plan, num_ranks=1)


def evaluations(inputs: Path, run: str) -> list[tuple[int, float]]:
    """(step, loss) of every evaluation in metrics.jsonl."""
    records = read_records(RunPaths(inputs / "runs" / run).metrics)
    return [(one.step, one.loss) for one in records if isinstance(one, EvaluationRecord)]


def test_ends_after_two_evaluations_that_are_not_better(two: Results, inputs: Path) -> None:
    found = evaluations(inputs, "early")
    losses = [loss for _, loss in found]
    best = losses.index(min(losses))
    assert 0 < best == len(losses) - 3  # else this recipe shows nothing
    assert len(two["early"]["losses"]) == found[-1][0] < 30
    assert any(
        "(ended early, 2 evaluations were not better)" in line for line in two["early"]["said"]
    )
    paths = RunPaths(inputs / "runs" / "early")
    latest, chosen = latest_checkpoint(paths), chosen_checkpoint(paths)
    assert latest is not None and chosen is not None
    assert (read_facts(latest).step, read_facts(chosen).step) == (found[-1][0], found[best][0])
    assert read_facts(latest).ended_early and not read_facts(chosen).ended_early


def test_the_same_command_again_has_nothing_to_do(two: Results, inputs: Path) -> None:
    assert any(
        "this run is complete: it was ended early" in one for one in two["early-again"]["said"]
    )
    assert two["early-again"]["losses"] == two["early"]["losses"]


@pytest.mark.parametrize("step", [3, 4])
def test_resumed_equals_uninterrupted(two: Results, inputs: Path, step: int) -> None:
    assert len(two[f"early-cut-{step}"]["losses"]) == step
    assert two[f"early-cut-{step}-on"]["losses"] == two["early"]["losses"]
    assert evaluations(inputs, f"early-cut-{step}") == evaluations(inputs, "early")


def test_one_rank_ends_at_the_same_step(two: Results, one: Results, inputs: Path) -> None:
    alone, both = evaluations(inputs, "early-one"), evaluations(inputs, "early")
    assert [step for step, _ in alone] == [step for step, _ in both]
    assert [loss for _, loss in alone] == pytest.approx([loss for _, loss in both], rel=1e-3)


def test_bits_per_byte_are_the_loss_over_the_bytes(two: Results, inputs: Path) -> None:
    """The tiny model's tokens are bytes; each answer ends with a token that has none."""
    paths = RunPaths(inputs / "runs" / "early")
    records = [one for one in read_records(paths.metrics) if isinstance(one, EvaluationRecord)]
    audit = json.loads(paths.audit.read_text())["validation"]
    num_bytes = audit["supervised_tokens"] - audit["samples"]
    for record in records:
        bits = record.loss * record.tokens / torch.log(torch.tensor(2.0)).item()
        assert record.bits_per_byte == pytest.approx(bits / num_bytes, rel=1e-6)


@pytest.mark.parametrize("run", ["hopeless", "hopeless-z3"])
def test_the_untrained_model_can_be_the_best_one(two: Results, inputs: Path, run: str) -> None:
    paths = RunPaths(inputs / "runs" / run)
    chosen = chosen_checkpoint(paths)
    assert chosen is not None and read_facts(chosen).step == 0
    saved = StateFiles(chosen)
    base = load_file(str(inputs / "model" / "model.safetensors"))
    for name in saved.names:
        assert torch.equal(saved.read(name), base[name])


def test_saving_an_untrained_optimizer_changes_nothing(one: Results) -> None:
    early, plain = one["adafactor-early"]["losses"], one["adafactor-plain"]["losses"]
    common = min(len(early), len(plain))
    assert common >= 4 and early[:common] == plain[:common]


def test_export_takes_the_best_checkpoint(two: Results, inputs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run = inputs / "runs" / "early"
    chosen = chosen_checkpoint(RunPaths(run))
    assert chosen is not None
    export_command(run, output=tmp_path / "model", say=said.append)
    assert any(f"model of {chosen.name} in" in line for line in said)
