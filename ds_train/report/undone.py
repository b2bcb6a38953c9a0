"""Steps that a run has made and then undone: undone.jsonl, beside metrics.jsonl.

A run that goes on from a checkpoint makes the steps after it again, and metrics.jsonl has the
records of those that count only. What it cuts off is kept here, a line for each time: the step that
was gone on from, the last one that had been made, and the records between them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ds_train.errors import CheckpointError, quoted
from ds_train.paths import RunPaths, replace_text
from ds_train.report.record import Record, StepRecord, from_values, read_records, to_values


@dataclass(frozen=True)
class Undone:
    """Steps from one that was gone back to, up to the last one that had been made."""

    from_step: int
    """Steps that stayed; 0: none."""
    reached_step: int
    """Number of the last step that was undone."""
    records: tuple[Record, ...]
    """What had been recorded of them."""

    @property
    def steps(self) -> list[StepRecord]:
        """Those of the optimizer steps."""
        return [one for one in self.records if isinstance(one, StepRecord)]


def keep_undone(paths: RunPaths, start_step: int) -> None:
    """Write down what metrics.jsonl is about to lose, as the run goes on after `start_step`.

    Nothing is written where no step is lost. A kill between this and the cut leaves the same lines
    twice, which `read_undone` takes for one.

    Raises:
        CheckpointError: undone.jsonl can't be written, or metrics.jsonl can't be read.
    """
    cut = [one for one in read_records(paths.metrics) if one.step > start_step]
    reached = max((one.step for one in cut if isinstance(one, StepRecord)), default=None)
    if reached is None:
        return
    line = {"from_step": start_step, "reached_step": reached, "records": [*map(to_values, cut)]}
    try:
        before = paths.undone.read_text(encoding="utf-8") if paths.undone.is_file() else ""
        replace_text(paths.undone, before + json.dumps(line, allow_nan=False) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"{quoted(paths.undone)} can't be written: {error.strerror}. It keeps the records of "
            f"steps {start_step + 1:,} to {reached:,}, which are made again; make room, then start "
            "the same command again."
        ) from None


def read_undone(paths: RunPaths) -> list[Undone]:
    """Every stretch of steps that a run has undone, oldest first.

    Raises CheckpointError where a line of the file is not one of ours.
    """
    if not paths.undone.is_file():
        return []
    found: list[Undone] = []
    for number, line in enumerate(paths.undone.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values = json.loads(line)
            records = tuple(from_values(one) for one in values["records"])
            one = Undone(int(values["from_step"]), int(values["reached_step"]), records)
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{quoted(paths.undone)}: line {number} is not a stretch of undone steps "
                f"({error}); remove that line, or the file, to go on without it."
            ) from None
        if not found or repr(one) != repr(found[-1]):  # repr: NaN is equal to itself there
            found.append(one)
    return found
