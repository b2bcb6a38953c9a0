"""What the files of finished runs say: final values, and the primary metric along the way.

Loss, perplexity and token accuracy stand in metrics.jsonl; where more is asked for, everything
comes from evaluation.json.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from ds_train.checkpoint.folder import latest_checkpoint, read_facts
from ds_train.compare.arms import RunSpec, run_name
from ds_train.compare.measure import EVALUATION
from ds_train.config.compare import RECORDED, CompareConfig, split_metric, split_shots
from ds_train.errors import CheckpointError, RunFailed, quoted
from ds_train.report.record import EvaluationRecord, StepRecord, read_records


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
    """The primary metric along the way, the end included; tokens ascending."""

    @property
    def name(self) -> str:
        """Its folder below the comparison's."""
        return run_name(self.arm, self.seed, self.rate)


def is_trained(spec: RunSpec) -> bool:
    """Whether the last step of a run is made and saved."""
    try:
        total_steps = int(json.loads(spec.paths.run_facts.read_text())["total_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    folder = latest_checkpoint(spec.paths)
    return folder is not None and read_facts(folder).step >= total_steps


def needs_measuring(compare: CompareConfig) -> bool:
    """Whether metrics are asked for that a run itself does not record."""
    return compare.every_checkpoint or any(metric not in RECORDED for metric in compare.metrics)


def is_measured(spec: RunSpec, compare: CompareConfig) -> bool:
    """Whether evaluation.json is there where it is needed, with all that is asked for."""
    if not needs_measuring(compare):
        return True
    numbers = _read_evaluation(spec)
    if numbers is None or (compare.every_checkpoint and not numbers.get("every_checkpoint")):
        return False
    folder = latest_checkpoint(spec.paths)
    return folder is not None and numbers.get("step") == read_facts(folder).step


def read_result(spec: RunSpec, compare: CompareConfig) -> RunResult:
    """The numbers of a finished run.

    Raises:
        RunFailed: a value is not finite, or missing; CheckpointError: files can't be read.
    """
    folder = latest_checkpoint(spec.paths)
    if folder is None:
        raise CheckpointError(f"{quoted(spec.paths.root)}: has no checkpoint.")
    facts = read_facts(folder)
    series = _measured(spec) if needs_measuring(compare) else _recorded(spec)
    if not series or series[-1][0] != facts.total_tokens:
        raise RunFailed("its last checkpoint has not been evaluated")
    values = {metric: find_value(series[-1][1], metric) for metric in compare.metrics}
    for metric, value in values.items():
        if not math.isfinite(value):
            raise RunFailed(f"{metric} is not finite")
    primary = compare.metrics[0]
    curve = tuple(Point(tokens, find_value(numbers, primary)) for tokens, numbers in series)
    return RunResult(
        spec.arm, spec.seed, spec.rate, facts.num_updates, facts.total_tokens, values, curve
    )


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
    tokens = {0: 0}
    series: list[tuple[int, dict[str, Any]]] = []
    for record in read_records(spec.paths.metrics):
        if isinstance(record, StepRecord):
            tokens[record.step] = record.total_tokens
        elif isinstance(record, EvaluationRecord):
            numbers = {name: getattr(record, name) for name in RECORDED}
            series.append((tokens[record.step], numbers))
    return series
