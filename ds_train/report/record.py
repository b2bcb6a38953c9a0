"""The record of a run: one JSON line a step, an evaluation, a counted step, in metrics.jsonl.

Everything else that shows a run (progress, trackers, plots) reads these records. A line is written
whole and flushed at once, so that a killed run loses at most the step it was in. A resumed run cuts
off what came after the step it resumes from, so that no step stands twice.

A number that is not finite is written as `null` (JSON has no NaN) and read back as NaN.
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from ds_train.errors import CheckpointError
from ds_train.report.communication import CommunicationRecord


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, all ranks together."""

    type: ClassVar[str] = "step"
    step: int
    """Number of this step; the first is 1."""
    loss: float
    """Mean over the supervised tokens of the step, or over its examples (fewshot.losses)."""
    grad_norm: float
    """Global gradient norm before clipping."""
    learning_rate: float
    """Of the first parameter group, in this step."""
    tokens: int
    """Tokens of this step, padding not counted."""
    supervised_tokens: int
    """Tokens of this step that the loss counts."""
    total_tokens: int
    """Tokens since the run began, this step included."""
    seconds: float
    """Wall time of this step."""
    tokens_per_second: float
    """tokens / seconds, all ranks together."""
    peak_memory_bytes: int
    """Of the rank that took most: device memory, or resident memory where there is no GPU."""
    language_modelling: float | None = None
    """fewshot.losses: mean loss of the right answers. None where there is no such loss."""
    unlikelihood: float | None = None
    """fewshot.losses: mean loss of the wrong answers' tokens."""
    length_normalised: float | None = None
    """fewshot.losses: mean cross-entropy among the candidates."""
    rank_accuracy: float | None = None
    """fewshot.losses: share of the examples whose right answer was likelier by token than the wrong
    ones of the step."""
    compute_seconds_min: float | None = None
    """Several ranks: time in which the quickest of them computed, since the exchange of the step
    before (its update) and up to this step's, without waiting for communication."""
    compute_seconds_median: float | None = None
    compute_seconds_max: float | None = None
    slowest_rank: int | None = None
    """The one of `compute_seconds_max`."""
    exposed_seconds: float | None = None
    """Over the same stretch: time in which a rank stood still because of communication, mean over
    the ranks. None in a counted step and the one after it, where nothing overlaps."""
    exposed_seconds_min: float | None = None
    """Of the rank that stood still least. What the mean has more is waiting for slower ranks."""


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation on the held-out data."""

    type: ClassVar[str] = "evaluation"
    step: int
    """Optimizer steps made before it."""
    loss: float
    """Mean over the supervised tokens."""
    perplexity: float
    """exp(loss)."""
    token_accuracy: float
    """Share of the supervised tokens that were the likeliest ones."""
    tokens: int
    """Supervised tokens evaluated."""
    seconds: float
    """Wall time."""
    best: bool
    """Whether this is the lowest loss so far, or the best train.early_stopping.metric."""
    bits_per_byte: float | None = None
    """Loss in bits over the bytes of text that the supervised tokens stand for."""
    rank_accuracy: float | None = None
    """Share of the examples whose right answer is the likeliest of all by its mean log-probability
    per token; None without evaluate.rank_classification."""
    rank_chance: float | None = None
    """What guessing would reach."""


@dataclass(frozen=True)
class TaskRecord:
    """One evaluation task of lm_eval, with one number of demonstrations and one seed."""

    type: ClassVar[str] = "task"
    step: int
    """Optimizer steps made before it."""
    task: str
    """Its name; or that of a group."""
    shots: int
    """Demonstrations; -1 of a group whose tasks have different numbers."""
    seed: int
    """Of the demonstrations."""
    metrics: dict[str, float]
    """Under lm_eval's names, standard errors (`acc_stderr,none`) too."""
    seconds: float
    """Wall time of the whole pass over all tasks."""


@dataclass(frozen=True)
class RollbackRecord:
    """A step diverged, and the run went back to a checkpoint and on without that step's rows."""

    type: ClassVar[str] = "rollback"
    step: int
    """Steps that were made when the run went on: those of the checkpoint."""
    number: int
    """Which rollback of the run this is; the first is 1."""
    diverged_step: int
    """Number of the step that went wrong."""
    reason: str
    """What was seen."""
    samples: int
    """Samples that are in quarantine since."""
    loss: float | None = None
    """Of the step that went wrong; None where it is not finite."""


Record = StepRecord | EvaluationRecord | TaskRecord | RollbackRecord | CommunicationRecord
_CLASSES: dict[str, type[Record]] = {
    one.type: one
    for one in (StepRecord, EvaluationRecord, TaskRecord, RollbackRecord, CommunicationRecord)
}


def to_json(record: Record) -> str:
    """The record as one line of JSON, `type` first; numbers that are not finite become null, and
    what a record does not have (None) is left out."""
    return json.dumps(to_values(record), allow_nan=False)


def to_values(record: Record) -> dict[str, Any]:
    """The same before it becomes text."""
    values = {key: _finite(value) for key, value in asdict(record).items() if value is not None}
    return {"type": record.type, **values}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(line: str) -> Record:
    """The record of one line; raises ValueError where the line is not one."""
    return from_values(json.loads(line))


def from_values(values: Any) -> Record:
    """The record that `to_values` made these of; raises ValueError where it is none."""
    if not isinstance(values, dict) or values.get("type") not in _CLASSES:
        raise ValueError("not a record of a run")
    values = dict(values)
    kind = _CLASSES[values.pop("type")]
    names = {field.name for field in fields(kind)}
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if faults := (needed - set(values)) | (set(values) - names):
        raise ValueError(f"keys {sorted(faults)} missing or unknown")
    return kind(**{key: _with_nan(value) for key, value in values.items()})


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(one) for key, one in value.items()}
    return math.nan if value is None else value


def read_records(path: Path) -> list[Record]:
    """All records of a run, in order. A last line cut short by a kill is left out.

    Raises CheckpointError where a line before the last is not a record.
    """
    records: list[Record] = []
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            records.append(from_json(line))
        except ValueError as error:
            raise CheckpointError(
                f"{path}: line {number} is not a record of a run ({error}); "
                "remove that line, or the file, to go on without it."
            ) from error
    return records


def _whole_lines(path: Path) -> list[str]:
    """Lines that end in a newline; what stands after the last newline was never finished."""
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8").split("\n")[:-1]


class Recorder:
    """Appends records to a file. Only rank 0 has one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, record: Record) -> None:
        """Append one line and hand it to the operating system at once."""
        try:
            self._file.write(to_json(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: step {record.step} could not be recorded: {error.strerror}. "
                "The last checkpoint is whole; make room, then start the same command again."
            ) from None

    def resume_at(self, step: int) -> list[Record]:
        """Cut off every record after `step` (and a half-written line); give back those that stay.

        The file is replaced in one go: a kill in the middle leaves the old one.
        """
        kept = [record for record in read_records(self.path) if record.step <= step]
        self._file.close()
        fresh = self.path.with_suffix(".jsonl.new")
        fresh.write_text("".join(to_json(record) + "\n" for record in kept), encoding="utf-8")
        fresh.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        return kept

    def close(self) -> None:
        """Close the file; writing again is an error."""
        self._file.close()
