"""Runs inside the deepspeed launcher: many small trainings in one process group.

Starting processes and importing costs seconds, a training of four tiny steps a fraction of one;
so the test session starts this once per number of ranks and every test reads from its results.

usage: deepspeed ... worker.py PLAN.json
The plan is a list of {"name", "recipe", "stop_after", "disk_full_at", "poisoned_step"}; results go
to NAME.json beside it: step losses, gradient norms, evaluation losses, or the error.
"""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ds_train.checkpoint import state
from ds_train.checkpoint.pieces import save_share
from ds_train.config.run import RunConfig
from ds_train.curriculum.plan import find_scores
from ds_train.curriculum.scores import ScoreBook
from ds_train.data.prepare import PreparedData, prepare_data
from ds_train.engine.ranks import Ranks
from ds_train.errors import DsTrainError
from ds_train.report.communication import CommunicationRecord
from ds_train.report.record import (
    EvaluationRecord,
    RollbackRecord,
    StepRecord,
    TaskRecord,
    read_records,
)
from ds_train.score.model import score_with_model
from ds_train.train import loop
from ds_train.train.guard import StopRequest
from ds_train.train.objective import TokenObjective
from ds_train.train.run import Run
from ds_train.train.setup import set_up

# the package of this folder, which the launcher's child does not know
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from distributed.run_plan import run_plan

TOKEN_SUMS = TokenObjective.sums


class StopAfter(StopRequest):
    """Asks to stop during a certain step, as a signal would."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self._step, self._asked = step, 0

    @property
    def requested(self) -> bool:
        """Asked once per step, by the loop."""
        self._asked += 1
        return self._asked == self._step


def fill_disk_at(write: int, ranks: Ranks) -> Callable[..., None]:
    """A `save_share` that meets a full disk at its n-th call, on the last rank only."""
    calls = iter(range(1, 1000))

    def save(*args: Any) -> None:
        if next(calls) == write and ranks.rank == ranks.world_size - 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_share(*args)

    return save


def poison(run: Run, step: int) -> None:
    """Make the loss of one sample NaN from now on: the first sample of that step's first row.

    As it would be by a sample that overflows: on the rank that has it, in whatever step.
    """
    stream = run.plan.row_plan  # which knows no quarantine
    bad = int(stream.row(*stream.locate(run.plan.first_row(step - 1)))[0])

    def sums(self: TokenObjective, engine: Any, batch: Any) -> torch.Tensor:
        return TOKEN_SUMS(self, engine, batch) * (math.nan if bad in batch.sample_ids else 1.0)

    TokenObjective.sums = sums  # type: ignore[method-assign]


def train(item: dict[str, Any], config: RunConfig, ranks: Ranks) -> dict[str, Any]:
    """One training in this process group; its records."""
    lines: list[str] = []
    data = prepare_data(config, say=lambda text: None)
    try:
        score_first(config, data, ranks)
        run = set_up(config, ranks, data, lines.append, find_scores(config, data))
        TokenObjective.sums = TOKEN_SUMS  # type: ignore[method-assign]
        if "poisoned_step" in item:
            poison(run, item["poisoned_step"])
        training = loop.Loop(run, StopAfter(item.get("stop_after")), lines.append)
        training.train()
    except DsTrainError as error:
        return {"error": str(error), "kind": type(error).__name__}
    records = read_records(run.paths.metrics) if ranks.is_main else []
    steps = [record for record in records if isinstance(record, StepRecord)]
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    tasks = [record for record in records if isinstance(record, TaskRecord)]
    return {
        "rollbacks": [asdict(one) for one in records if isinstance(one, RollbackRecord)],
        "steps": [record.step for record in steps],
        "tasks": [[one.step, one.task, one.shots, one.metrics] for one in tasks],
        "losses": [record.loss for record in steps],
        "grad_norms": [record.grad_norm for record in steps],
        "learning_rates": [record.learning_rate for record in steps],
        "tokens": [record.tokens for record in steps],
        "evaluations": [record.loss for record in evaluations],
        "rows": delivered_rows(run) if steps and steps[-1].step == run.total_steps else [],
        "said": lines,
        "communication": [
            asdict(record) for record in records if isinstance(record, CommunicationRecord)
        ],
        "computed": [[one.compute_seconds_min, one.compute_seconds_max] for one in steps],
        "slowest": [one.slowest_rank for one in steps],
        "exposed": [one.exposed_seconds for one in steps],
        "seconds": [one.seconds for one in steps],
    }


def score_first(config: RunConfig, data: PreparedData, ranks: Ranks) -> None:
    """What `ds-train score` does for a metric that is measured by a model."""
    if config.curriculum is None or config.curriculum.metric != "loss":
        return
    book = ScoreBook(config, data)
    missing = [spec for spec in book.specs if book.open(spec, lambda text: None) is None]
    if ranks.first_text("missing" if missing else ""):
        for spec in book.specs:
            score_with_model(book, spec, ranks, lambda text: None)


def delivered_rows(run: Run) -> list[list[list[int]]]:
    """Samples (or sample, start, stop of each piece) of every row of every step."""
    steps = range(run.total_steps)
    return [[row.ravel().tolist() for row in run.plan.rows(step)] for step in steps]


def one_training(item: dict[str, Any], plan_file: Path, ranks: Ranks) -> dict[str, Any]:
    """One item of the plan."""
    config = RunConfig.model_validate(item["recipe"])
    state.save_share = save_share
    if "disk_full_at" in item:
        state.save_share = fill_disk_at(item["disk_full_at"], ranks)
    return train(item, config, ranks)


if __name__ == "__main__":
    run_plan(one_training)
