"""Counted collectives beside the planned ones, and what a run says of them at its end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ds_train.report.communication import CommunicationRecord
from ds_train.report.record import Recorder, StepRecord, from_json, read_records, to_json
from ds_train.report.straggler import WINDOW, StragglerFinder
from ds_train.report.trackers import _numbers
from ds_train.report.traffic import Calls, Planned, Summary, communication_record, sent_bytes

CALLS = [
    Calls("all_gather_into_tensor", 1000, 3, 0.3),
    Calls("all_gather_into_tensor", 500, 2, 0.1),
    Calls("reduce_scatter_tensor", 4000, 1, 0.2),
    Calls("all_reduce", 8, 1, 0.01),
    Calls("exchange", 80, 1, 0.02),
]
PLAN = {
    "all_gather": Planned(5, 4000, 12000, 0.5),
    "reduce_scatter": Planned(1, 5000, 3750, 0.25),
}
TIMES: dict[str, Any] = {
    "step": 4,
    "counted_step": 2,
    "counted_seconds": 2.0,
    "num_ranks": 4,
    "exposed_seconds": 0.3,
    "step_seconds": 1.5,
}


@pytest.fixture
def record() -> CommunicationRecord:
    return communication_record(CALLS, PLAN, **TIMES)


def test_a_ring_sends_what_the_formulas_say() -> None:
    assert sent_bytes("all_reduce", 4000, 4) == 6000
    assert sent_bytes("reduce_scatter", 4000, 4) == 3000
    assert sent_bytes("all_gather", 1000, 4) == 3000  # logged is the own part
    assert sent_bytes("broadcast", 4000, 4) == 4000


def test_bytes_and_seconds_stand_beside_the_plan(record: CommunicationRecord) -> None:
    assert record.collectives["all_gather"] == {
        "calls": 5,
        "bytes": 4000,
        "sent_bytes": 12000,
        "seconds": pytest.approx(0.4),
        "planned_calls": 5,
        "planned_bytes": 4000,
        "planned_sent_bytes": 12000,
        "planned_seconds": 0.5,
        "difference": 0.0,
    }
    assert record.collectives["reduce_scatter"]["difference"] == pytest.approx(-0.2)
    assert (record.bytes, record.planned_bytes) == (8000, 9000)
    assert record.difference == pytest.approx(8000 / 9000 - 1)
    assert record.planned_seconds == 0.75


def test_small_messages_are_counted_but_not_compared(record: CommunicationRecord) -> None:
    assert list(record.collectives) == ["all_gather", "reduce_scatter", "messages"]
    messages = record.collectives["messages"]
    assert messages["calls"] == 2 and messages["bytes"] == 88 and "difference" not in messages
    assert record.seconds == pytest.approx(0.63)
    assert record.share == pytest.approx(0.315) and record.exposed_share == pytest.approx(0.2)


def test_ranks_that_share_rows_exchange_among_themselves() -> None:
    shared = communication_record(
        [Calls("all_to_all_single", 1000, 2, 0.1)], None, **TIMES, row_ranks=2
    )
    assert shared.collectives["all_to_all"]["sent_bytes"] == 1000


def test_without_a_prediction_nothing_is_compared() -> None:
    alone = communication_record(CALLS, None, **TIMES)
    assert alone.planned_bytes is None and alone.difference is None
    assert alone.planned_seconds is None
    assert set(alone.collectives["all_gather"]) == {"calls", "bytes", "sent_bytes", "seconds"}


def test_a_collective_that_never_came_is_shown_too() -> None:
    found = communication_record(CALLS[:2], PLAN, **TIMES)
    assert found.collectives["reduce_scatter"]["bytes"] == 0
    assert found.collectives["reduce_scatter"]["difference"] == -1.0


def test_without_bandwidths_no_seconds_are_planned() -> None:
    plan = {name: replace(one, seconds=None) for name, one in PLAN.items()}
    found = communication_record(CALLS, plan, **TIMES)
    assert found.planned_seconds is None
    assert "planned_seconds" not in found.collectives["all_gather"]


def test_the_record_comes_back_from_its_line(record: CommunicationRecord, tmp_path: Path) -> None:
    line = to_json(record)
    assert json.loads(line)["type"] == "communication"
    assert from_json(line) == record
    recorder = Recorder(tmp_path / "metrics.jsonl")
    recorder.write(record)
    assert read_records(tmp_path / "metrics.jsonl") == [record]


def test_trackers_get_each_number_of_it(record: CommunicationRecord) -> None:
    numbers = _numbers(record)
    assert numbers["communication/share"] == pytest.approx(0.315)
    assert numbers["communication/collectives/all_gather/planned_bytes"] == 4000.0
    assert "communication/step" not in numbers
    assert all(isinstance(value, float) for value in numbers.values())


def paced(step_record: StepRecord, rank: int, **changes: Any) -> StepRecord:
    times = {
        "compute_seconds_min": 0.2,
        "compute_seconds_median": 0.25,
        "compute_seconds_max": 0.3,
        "exposed_seconds": 0.1,
        "exposed_seconds_min": 0.05,
    }
    return replace(step_record, slowest_rank=rank, **{**times, **changes})


def test_the_line_at_the_end(record: CommunicationRecord, step_record: StepRecord) -> None:
    summary = Summary()
    assert summary.line() is None and summary.table() == []
    for rank in (1, 1, 0, 1):
        summary.add(paced(step_record, rank))
    summary.add(paced(step_record, 1, exposed_seconds=None, exposed_seconds_min=None))
    assert summary.line() is None
    summary.add(record)
    assert summary.line() == (
        "communication: 31.5% of step 2, where nothing overlapped; 20.0% of a step not hidden "
        "(median); 7.81 KiB a step and rank, -11.1% beside the plan; rank 1 was the slowest in "
        "80% of 5 steps, 20% over the median rank"
    )
    assert summary.table()[0] == (
        "  all_gather         3.91 KiB in 5 calls, planned 3.91 KiB in 5; 400 ms"
    )
    summary.add(replace(record, difference=0.0))
    assert "a step and rank, as planned; rank" in str(summary.line())


def test_a_straggler_is_named_once() -> None:
    finder = StragglerFinder()
    said = [finder.add(2, 0.5) for _ in range(2 * WINDOW)]
    assert said[: WINDOW - 1] == [None] * (WINDOW - 1)
    assert said[WINDOW - 1] == (2, pytest.approx(0.5))
    assert said[WINDOW:] == [None] * WINDOW


@pytest.mark.parametrize(
    ("name", "often", "over"),
    [("a little slower", WINDOW, 0.05), ("slower now and then", WINDOW // 2, 0.5)],
)
def test_ranks_that_are_no_stragglers(name: str, often: int, over: float) -> None:
    finder = StragglerFinder()
    steps = [(0, 0.01)] * (WINDOW - often) + [(2, over)] * often
    assert [finder.add(*step) for step in steps] == [None] * WINDOW


def test_being_slowest_in_four_of_five_steps_is_enough() -> None:
    finder = StragglerFinder()
    steps = [(0, 0.01), (2, 0.1), (2, 0.2), (2, 0.3), (2, 0.4)] * (WINDOW // 5)
    assert [finder.add(*step) for step in steps][-1] == (2, pytest.approx(0.25))
