"""What the files of finished runs say: final values, and the primary metric along the way.

Loss, perplexity and token accuracy stand in metrics.jsonl; where more is asked for, everything
comes from evaluation.json.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from ds_train.checkpoint.folder import chosen_checkpoint, latest_checkpoint, read_facts
from ds_train.compare.arms import RunSpec, run_name
from ds_train.compare.measure import EVALUATION
from ds_train.config.compare import RECORDED, CompareConfig, split_metric, split_shots
from ds_train.errors import CheckpointError, RunFailed, quoted
from ds_train.report.record import EvaluationRecord, RollbackRecord, StepRecord, read_records


@dataclass(frozen=True)
class Point:
    """A metric after so many tokens."""

    tokens: int
    value: float


@dataclass(frozen=True)
class RunResult:
    """What one finished run reached."""

    arm: str
    seed: int
    rate: float | None
    updates: int
    """Optimizer steps made."""
    tokens: int
    """Tokens trained on."""
    values: dict[str, float]
    """Metric -> value at the end."""
    curve: tuple[Point, ...]
    """The primary metric along the way, the end included; tokens ascending. On dev data where
    there is some."""
    dev: float | None = None
    """Primary metric on dev data, on which learning rates are chosen; None without such data."""
    rolled_back: tuple[int, ...] = ()
    """Steps that diverged, whose rows were left out (train.rollback)."""

    def selected_by(self, metric: str) -> float:
        """What choices go by: the value on dev data, or where there is none that of `metric`."""
        return self.values[metric] if self.dev is None else self.dev

    @property
    def name(self) -> str:
        """Its folder below the comparison's."""
        return run_name(self.arm, self.seed, self.rate)


def is_trained(spec: RunSpec) -> bool:
    """Whether a run has come to its end, and has saved it."""
    try:
        total_steps = int(json.loads(spec.paths.run_facts.read_text())["total_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    folder = latest_checkpoint(spec.paths)
    if folder is None:
        return False
    facts = read_facts(folder)
    return facts.ended_early or facts.step >= total_steps


def needs_measuring(spec: RunSpec, compare: CompareConfig) -> bool:
    """Whether metrics are asked for that a run itself does not record.

    With dev data a run records those of dev, and with evaluate.max_rows those of some rows; what is
    reported has to be measured then.
    """
    recorded = all(metric in RECORDED for metric in compare.metrics)
    in_part = spec.has_dev or spec.config.evaluate.max_rows is not None
    return compare.every_checkpoint or in_part or not recorded


def measures_dev(spec: RunSpec, compare: CompareConfig) -> bool:
    """Whether the primary metric on dev data has to be measured, as no run records it."""
    return spec.has_dev and compare.metrics[0] not in RECORDED


def is_measured(spec: RunSpec, compare: CompareConfig) -> bool:
    """Whether evaluation.json is there where it is needed, with all that is asked for."""
    if not needs_measuring(spec, compare):
        return True
    numbers = _read_evaluation(spec)
    if numbers is None or (compare.every_checkpoint and not numbers.get("every_checkpoint")):
        return False
    if measures_dev(spec, compare) and "dev" not in numbers:
        return False
    folder = chosen_checkpoint(spec.paths)
    return folder is not None and numbers.get("step") == read_facts(folder).step


def read_result(spec: RunSpec, compare: CompareConfig) -> RunResult:
    """The numbers of a finished run.

    Raises:
        RunFailed: a value is not finite, or missing; CheckpointError: files can't be read.
    """
    folder = chosen_checkpoint(spec.paths)
    if folder is None:
        raise CheckpointError(f"{quoted(spec.paths.root)}: has no checkpoint.")
    facts, recorded, primary = read_facts(folder), _recorded(spec), compare.metrics[0]
    series = _measured(spec) if needs_measuring(spec, compare) else recorded
    final = _at_tokens(series, facts.total_tokens)
    values = {metric: find_value(final, metric) for metric in compare.metrics}
    for metric, value in values.items():
        if not math.isfinite(value):
            raise RunFailed(f"{metric} is not finite")
    dev = None
    if measures_dev(spec, compare):
        dev = find_value((_read_evaluation(spec) or {}).get("dev", {}), primary)
    elif spec.has_dev:
        series = recorded
        dev = find_value(_at_tokens(recorded, facts.total_tokens), primary)
    curve = tuple(Point(tokens, find_value(numbers, primary)) for tokens, numbers in series)
    updates, tokens = facts.num_updates, facts.total_tokens
    rolled_back = _rolled_back(spec)
    return RunResult(
        spec.arm, spec.seed, spec.rate, updates, tokens, values, curve, dev, rolled_back
    )


def _rolled_back(spec: RunSpec) -> tuple[int, ...]:
    records = read_records(spec.paths.metrics)
    return tuple(one.diverged_step for one in records if isinstance(one, RollbackRecord))


def _at_tokens(series: list[tuple[int, dict[str, Any]]], tokens: int) -> dict[str, Any]:
    """The numbers of the evaluation after so many tokens."""
    for place, numbers in reversed(series):
        if place == tokens:
            return numbers
    raise RunFailed("its checkpoint has not been evaluated")


def find_value(numbers: dict[str, Any], metric: str) -> float:
    """A metric in the numbers of an evaluation; raises RunFailed where it is missing."""
    source, name = split_metric(metric)
    shots, _ = split_shots(metric)
    try:
        if shots is not None:
            numbers = numbers["shots"][shots]
        if source is None:
            return float(numbers[name])
        if source == "mean" and source not in numbers["sources"]:
            values = [float(one[name]) for one in numbers["sources"].values()]
            return sum(values) / len(values)
        return float(numbers["sources"][source][name])
    except (KeyError, TypeError, ZeroDivisionError):
        raise RunFailed(f"{metric} is missing in its {EVALUATION}") from None


def _read_evaluation(spec: RunSpec) -> dict[str, Any] | None:
    try:
        numbers = json.loads((spec.paths.root / EVALUATION).read_text())
    except (OSError, ValueError):
        return None
    return numbers if isinstance(numbers, dict) else None


def _measured(spec: RunSpec) -> list[tuple[int, dict[str, Any]]]:
    """(tokens, numbers) of each checkpoint in evaluation.json, the last one at the end."""
    numbers = _read_evaluation(spec)
    if numbers is None:
        return []
    return [(one["total_tokens"], one) for one in [*numbers.get("earlier", []), numbers]]


def _recorded(spec: RunSpec) -> list[tuple[int, dict[str, Any]]]:
    """(tokens, numbers) of each evaluation in metrics.jsonl."""
    total = 0
    series: list[tuple[int, dict[str, Any]]] = []
    for record in read_records(spec.paths.metrics):
        if isinstance(record, StepRecord):
            total = record.total_tokens  # a step that was left out has no record
        elif isinstance(record, EvaluationRecord):
            found = {name: getattr(record, name) for name in RECORDED}
            numbers = {name: value for name, value in found.items() if value is not None}
            series.append((total, numbers))
    return series
