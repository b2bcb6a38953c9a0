"""The communication of a run: collectives that were counted, beside those that were planned.

Bytes are those of DeepSpeed's communication logger: the tensor that a rank puts in. For a gather
that is its own part. What a rank sends for it in a ring follows (`plan/volume.py`):

    all_reduce  2 (n - 1) / n S        reduce_scatter, all_to_all  (n - 1) / n S
    all_gather  (n - 1) S

The logger does not tell who takes part. With ZeRO++'s groups, n is still that of all ranks, so that
the bytes sent of gathers within a group come out too many. Ranks that share rows are known: theirs
is the all_to_all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ds_train.plan.volume import ring_bytes
from ds_train.report.communication import CommunicationRecord
from ds_train.report.record import Record, StepRecord
from ds_train.report.straggler import over_median
from ds_train.units import format_bytes

OPERATIONS = {
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "all_gather": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}
"""DeepSpeed's name -> ours; others keep theirs."""
SMALL_BYTES = 16
"""Messages about overflow and norm are not larger; the plan leaves them out."""
MESSAGES = "messages"
"""The small messages together, and the exchange that ends a step."""


@dataclass(frozen=True)
class Calls:
    """Calls of one collective with messages of one size, on one rank."""

    operation: str
    message_bytes: int
    number: int
    seconds: float
    """Of all of them together, blocking."""


@dataclass(frozen=True)
class Planned:
    """What the plan says of one collective in a step."""

    calls: int
    logged_bytes: int
    sent_bytes: int
    seconds: float | None
    """None where the cluster's bandwidths are not known."""


Prediction = Mapping[str, Planned]


def sent_bytes(operation: str, num_bytes: int, num_ranks: int) -> int:
    """What one rank sends in a ring, from the bytes that the logger counts."""
    if operation not in OPERATIONS.values():
        return num_bytes
    payload = num_bytes * num_ranks if operation == "all_gather" else num_bytes
    return ring_bytes(operation, payload, num_ranks)


def communication_record(
    calls: Sequence[Calls],
    prediction: Prediction | None,
    *,
    step: int,
    counted_step: int,
    counted_seconds: float,
    num_ranks: int,
    exposed_seconds: float | None,
    step_seconds: float | None,
    row_ranks: int = 1,
) -> CommunicationRecord:
    """The record of a counted step.

    Args:
        step: the last step that it tells of.
        counted_seconds: wall time of the counted step.
        exposed_seconds, step_seconds: of `step`, in which communication overlapped as always.
        row_ranks: ranks that share a row.
    """
    found = {*map(_name, calls), *(prediction or {})}
    names = sorted(found, key=lambda name: (name == MESSAGES, name))
    table = {}
    for name in names:
        group = row_ranks if name == "all_to_all" else num_ranks
        table[name] = _row(name, [one for one in calls if _name(one) == name], prediction, group)
    large = [row for name, row in table.items() if name != MESSAGES]
    num_bytes = int(sum(row["bytes"] for row in large))
    planned = None if prediction is None else sum(one.logged_bytes for one in prediction.values())
    times = [None] if prediction is None else [one.seconds for one in prediction.values()]
    seconds = sum(row["seconds"] for row in table.values())
    return CommunicationRecord(
        step=step,
        counted_step=counted_step,
        ranks=num_ranks,
        bytes=num_bytes,
        sent_bytes=int(sum(row["sent_bytes"] for row in large)),
        seconds=seconds,
        share=seconds / counted_seconds,
        collectives=table,
        planned_bytes=planned,
        planned_seconds=None if None in times else sum(one for one in times if one is not None),
        difference=num_bytes / planned - 1 if planned else None,
        exposed_seconds=exposed_seconds,
        exposed_share=None
        if exposed_seconds is None or not step_seconds
        else exposed_seconds / step_seconds,
    )


def _name(one: Calls) -> str:
    if one.operation == "exchange" or one.message_bytes <= SMALL_BYTES:
        return MESSAGES
    return OPERATIONS.get(one.operation, one.operation)


def _row(
    name: str, calls: Sequence[Calls], prediction: Prediction | None, num_ranks: int
) -> dict[str, float]:
    num_bytes = sum(one.message_bytes * one.number for one in calls)
    kind = "all_reduce" if name == MESSAGES else name
    row: dict[str, float] = {
        "calls": sum(one.number for one in calls),
        "bytes": num_bytes,
        "sent_bytes": sent_bytes(kind, num_bytes, num_ranks),
        "seconds": sum(one.seconds for one in calls),
    }
    if prediction is None or name == MESSAGES:
        return row
    planned = prediction.get(name, Planned(0, 0, 0, None))
    row |= {
        "planned_calls": planned.calls,
        "planned_bytes": planned.logged_bytes,
        "planned_sent_bytes": planned.sent_bytes,
    }
    if planned.seconds is not None:
        row["planned_seconds"] = planned.seconds
    if planned.logged_bytes:
        row["difference"] = num_bytes / planned.logged_bytes - 1
    return row


class Summary:
    """What the records of a run say of its communication, all together."""

    def __init__(self) -> None:
        self._last: CommunicationRecord | None = None
        self._exposed: list[float] = []
        self._skews: list[tuple[int, float]] = []

    def add(self, record: Record) -> None:
        """Take one record; those of a run come in order."""
        if isinstance(record, CommunicationRecord):
            self._last = record
        if not isinstance(record, StepRecord) or record.slowest_rank is None:
            return
        if record.exposed_seconds is not None:
            self._exposed.append(record.exposed_seconds / record.seconds)
        slow, middle = record.compute_seconds_max, record.compute_seconds_median
        assert slow is not None and middle is not None
        self._skews.append((record.slowest_rank, over_median(slow, middle)))

    def line(self) -> str | None:
        """Share of a step, what of it is not hidden, bytes beside the plan, the slowest rank."""
        if self._last is None:
            return None
        return f"communication: {'; '.join(self._parts(self._last))}"

    def _parts(self, last: CommunicationRecord) -> Iterator[str]:
        yield f"{last.share:.1%} of step {last.counted_step:,}, where nothing overlapped"
        if self._exposed:
            yield f"{median(self._exposed):.1%} of a step not hidden (median)"
        yield f"{format_bytes(last.bytes)} a step and rank{_against_plan(last)}"
        if self._skews:
            counts = Counter(rank for rank, _ in self._skews)
            slowest = max(sorted(counts), key=counts.__getitem__)
            skew = median(one for rank, one in self._skews if rank == slowest)
            yield (
                f"rank {slowest} was the slowest in {counts[slowest] / len(self._skews):.0%} of "
                f"{len(self._skews):,} steps, {skew:.0%} over the median rank"
            )

    def table(self) -> list[str]:
        """The last counted step, a line for each collective; [] where none was counted."""
        return [] if self._last is None else list(_table(self._last.collectives))


def _against_plan(record: CommunicationRecord) -> str:
    if record.planned_bytes is None:
        return ""
    if record.difference is None:
        return ", none planned"
    if abs(record.difference) < 0.0005:
        return ", as planned"
    return f", {record.difference:+.1%} beside the plan"


def _table(collectives: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, row in collectives.items():
        yield (
            f"  {name:<15}{format_bytes(int(row['bytes'])):>12} in {row['calls']:,} calls"
            f"{_planned(row)}; {1e3 * row['seconds']:.3g} ms"
        )


def _planned(row: Mapping[str, Any]) -> str:
    if "planned_bytes" not in row:
        return ""
    return f", planned {format_bytes(int(row['planned_bytes']))} in {row['planned_calls']:,}"
