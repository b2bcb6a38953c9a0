"""Runs of a comparison that were rolled back: told beside the table, and read all the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ds_train.compare.results import RunResult, _recorded, _rolled_back
from ds_train.compare.summary import summarise
from ds_train.compare.table import markdown
from ds_train.config.compare import CompareConfig
from ds_train.paths import RunPaths
from ds_train.report.record import (
    EvaluationRecord,
    Record,
    RollbackRecord,
    StepRecord,
    to_json,
)


def step(number: int) -> StepRecord:
    return StepRecord(number, 1.0, 1.0, 0.1, 8, 8, 8 * number, 1.0, 8.0, 1)


def test_an_evaluation_after_a_step_that_was_left_out(tmp_path: Path) -> None:
    """Which has no record of its own."""
    records: list[Record] = [step(1), RollbackRecord(1, 1, 2, "loss = nan", 8)]
    records += [EvaluationRecord(2, 0.5, 1.6, 0.5, 8, 0.1, True), step(3)]
    spec: Any = SimpleNamespace(paths=RunPaths(tmp_path))
    spec.paths.metrics.write_text("".join(to_json(one) + "\n" for one in records))
    ((tokens, numbers),) = _recorded(spec)
    assert (tokens, numbers["loss"]) == (8, 0.5)
    assert _rolled_back(spec) == (2,)


def test_the_table_names_them() -> None:
    compare = CompareConfig.model_validate({"arms": {"a": {}, "b": {}}})
    runs = [
        RunResult(arm, 0, None, 10, 1000, {"loss": 1.0}, (), rolled_back=steps)
        for arm, steps in (("a", ()), ("b", (3, 1200)))
    ]
    told = markdown(summarise(runs, compare, {}), compare, runs, []).split("\n")
    rolled_back = [line for line in told if line.startswith("Rolled back:")]
    assert rolled_back == [
        f"Rolled back: {runs[1].name}: the samples of steps 3, 1,200 are left out; `ds-train "
        "report` says why."
    ]
