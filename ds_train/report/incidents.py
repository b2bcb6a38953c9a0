"""What befell a run, and where it went on: rollbacks, restarts, and starts by hand.

    rollbacks       records in metrics.jsonl        (train/divergence.py)
    restarts        lines of restarts.jsonl         (train/restart.py, cluster.restarts)
    failures        lines of failures.jsonl: those after which the command itself gave up
    undone steps    undone.jsonl: whatever it was, these were made and then made again

A stretch of undone steps that no rollback and no restart explains was started again by hand, or by
a scheduler; its cause is the failure that reached the same step, where one was written down.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ds_train.paths import RunPaths
from ds_train.report.endings import read_endings
from ds_train.report.record import Record, RollbackRecord
from ds_train.report.undone import Undone

Kind = Literal["rollback", "restart", "by hand", "failure"]
_NOT_KNOWN = "not written down (killed together with `ds-train train`, or ended by a scheduler)"


@dataclass(frozen=True)
class Incident:
    """One time that a run did not just go on."""

    kind: Kind
    step: int
    """The last one made; of a rollback the one that diverged."""
    from_step: int | None
    """Steps of the checkpoint that it went on from, 0 for the start; None of a failure after which
    it has not gone on, or had lost nothing."""
    cause: str
    num_samples: int = 0
    """Of a rollback: samples that are left out since."""
    loss: float | None = None
    """Of a rollback: that of the step, where it is finite."""
    went_on: str = ""
    """Of a restart: on how many processes, without which hosts."""
    undone: Undone | None = field(default=None, repr=False)
    """The records of the steps that were lost; None where none were recorded."""

    @property
    def num_lost(self) -> int:
        """Steps that were made for nothing."""
        return 0 if self.from_step is None else max(0, self.step - self.from_step)

    @property
    def seconds_lost(self) -> float:
        """Wall time of those that were recorded."""
        return 0.0 if self.undone is None else sum(one.seconds for one in self.undone.steps)


def find_incidents(
    paths: RunPaths, records: Sequence[Record], undone: Sequence[Undone]
) -> list[Incident]:
    """Everything that befell a run, by step.

    Raises CheckpointError where restarts.jsonl or failures.jsonl can't be read.
    """
    left = list(undone)
    restarts, failures = read_endings(paths.restarts), read_endings(paths.failures)
    found = [_rollback(one, left) for one in records if isinstance(one, RollbackRecord)]
    found += [_restart(line, left) for line in restarts]
    causes = [(line["reached_step"], _cause(paths, line)) for line in failures]
    for stretch in left:
        cause = _take(causes, stretch.reached_step)
        found.append(
            Incident("by hand", stretch.reached_step, stretch.from_step, cause, undone=stretch)
        )
    found += [Incident("failure", step, None, text) for step, text in causes]
    return sorted(found, key=lambda one: one.step)


def _rollback(record: RollbackRecord, left: list[Undone]) -> Incident:
    """`left`: stretches that nothing explains yet; the one of this rollback is taken out."""
    return Incident(
        "rollback",
        record.diverged_step,
        record.step,
        record.reason,
        record.samples,
        record.loss,
        undone=_explained(left, record.step, record.diverged_step - 1),
    )


def _restart(line: dict[str, Any], left: list[Undone]) -> Incident:
    went_on = f"{line['world_size']} {'process' if line['world_size'] == 1 else 'processes'}"
    if line["lost_hosts"]:
        went_on += f", without {', '.join(line['lost_hosts'])}"
    reached = line["reached_step"]
    # a checkpoint that turned out to be damaged was set aside after the line had been written
    stretch = _explained(left, line["from_step"], reached)
    since = line["from_step"] if stretch is None else stretch.from_step
    return Incident("restart", reached, since, line["cause"], went_on=went_on, undone=stretch)


def _explained(left: list[Undone], from_step: int, reached: int) -> Undone | None:
    for place, one in enumerate(left):
        if one.reached_step == reached and one.from_step <= from_step:
            return left.pop(place)
    return None


def _take(causes: list[tuple[int, str]], reached: int) -> str:
    for place, (step, _) in enumerate(causes):
        if step == reached:
            return causes.pop(place)[1]
    return _NOT_KNOWN


def _cause(paths: RunPaths, line: dict[str, Any]) -> str:
    """That of a step that diverged stands in a file of its own."""
    step = line["reached_step"] + 1
    path = paths.root / f"diverged_step_{step}.json"
    if line["kind"] != "diverged" or not path.is_file():
        return str(line["cause"])
    return f"step {step:,}: {json.loads(path.read_text(encoding='utf-8'))['reason']}"
