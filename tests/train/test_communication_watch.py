"""Which steps are counted, and when their record comes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from ds_train.config.report import ReportConfig
from ds_train.errors import ModelError
from ds_train.report.communication import CommunicationRecord
from ds_train.report.straggler import WINDOW
from ds_train.report.traffic import Calls, Planned
from ds_train.train import communication
from ds_train.train.communication import CommunicationWatch
from ds_train.train.step import StepResult


class FakeTraffic:
    """Notes which steps were counted; a step settles the model, as the engine's does."""

    def __init__(self) -> None:
        self.settled = True
        self.counts: list[bool] = []
        self.counted = [Calls("all_reduce", 1000, 1, 0.25)]

    def watched(self, *, count: bool) -> AbstractContextManager[None]:
        self.counts.append(count)
        return nullcontext()


class Training:
    """Steps of a run on rank 0 of some, with times that are given."""

    def __init__(self, *, ranks: int = 2, start: int = 0, every: int = 10) -> None:
        self.traffic = FakeTraffic()
        self.said: list[str] = []
        self.step = start
        run: Any = SimpleNamespace(
            engine=SimpleNamespace(traffic=self.traffic),
            config=SimpleNamespace(report=ReportConfig(communication_every=every)),
            ranks=SimpleNamespace(
                world_size=ranks,
                sequence_parallel_size=1,
                is_main=True,
                device=SimpleNamespace(type="cpu"),
                texts=lambda text: [f"host-{rank}" for rank in range(ranks)],
            ),
            start=SimpleNamespace(step=start),
        )
        self.watch = CommunicationWatch(run, self.said.append)
        self.fields: list[dict[str, Any]] = []
        self.records: list[CommunicationRecord] = []

    def make(
        self,
        num_steps: int,
        *,
        counted_seconds: float = 1.0,
        compute: tuple[float, ...] = (0.5, 0.75),
        waiting: tuple[float, ...] = (0.5, 0.25),
    ) -> None:
        for _ in range(num_steps):
            self.step += 1
            with self.watch.step():
                asked = self.watch.wants_count(self.step)
            counted = bool(self.traffic.counts) and self.traffic.counts[-1]
            result = StepResult(
                1.0, {}, 1.0, stop=False, peak_memory_bytes=0, count_next=asked,
                compute_seconds=compute, waiting_seconds=waiting,
            )  # fmt: skip
            seconds = counted_seconds if counted else 1.0
            self.fields.append(self.watch.pace(self.step, result, seconds))
            if (record := self.watch.record(self.step)) is not None:
                self.records.append(record)

    @property
    def counted(self) -> list[int]:
        return [step for step, count in enumerate(self.traffic.counts, start=1) if count]


@pytest.fixture(autouse=True)
def plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan's numbers, without a model."""
    planned = {"all_reduce": Planned(1, 800, 800, None)}
    monkeypatch.setattr(communication, "predict_traffic", lambda *args, **kwargs: planned)


def test_the_third_step_is_counted_and_then_one_of_every_so_many() -> None:
    training = Training(every=10)
    training.make(40)
    assert training.counted == [3, 13, 23, 33]
    assert [(one.step, one.counted_step) for one in training.records] == [
        (5, 3), (15, 13), (25, 23), (35, 33),
    ]  # fmt: skip


def test_counts_that_are_dear_are_rarer() -> None:
    training = Training(every=10)
    training.make(70, counted_seconds=1.5)  # half a step more: 1 % of 50 steps
    assert training.counted == [3, 53]


def test_a_step_that_is_not_like_most_is_passed_by() -> None:
    training = Training(every=10)
    training.make(12)
    training.traffic.settled = False  # an evaluation
    training.make(2)
    training.traffic.settled = True
    training.make(5)
    assert training.counted == [3, 15]


def test_where_no_step_is_like_most_one_is_counted_all_the_same() -> None:
    training = Training(every=20)
    training.traffic.settled = False
    training.make(30)
    assert training.counted == [13]


def test_a_resumed_process_counts_its_own_third_step() -> None:
    training = Training(start=100)
    training.make(5)
    assert training.counted == [3]
    assert training.records[0].counted_step == 103


def test_the_record_has_the_plan_beside_it() -> None:
    training = Training()
    training.make(5)
    (record,) = training.records
    assert record.share == 0.25 and record.exposed_seconds == 0.375
    assert record.exposed_share == 0.375
    assert record.difference == 0.25


def test_a_run_that_ends_early_still_records_what_it_counted() -> None:
    training = Training()
    training.make(4)
    assert training.records == []
    record = training.watch.record(4, last=True)
    assert record is not None and record.step == 4 and record.exposed_seconds is None
    assert training.watch.record(4, last=True) is None


def test_every_step_names_the_slowest_rank() -> None:
    training = Training(ranks=3)
    training.make(5, compute=(0.5, 0.9, 0.6), waiting=(0.5, 0.1, 0.3))
    first = training.fields[0]
    assert first == {
        "compute_seconds_min": 0.5,
        "compute_seconds_median": 0.6,
        "compute_seconds_max": 0.9,
        "slowest_rank": 1,
        "exposed_seconds": pytest.approx(0.3),
        "exposed_seconds_min": 0.1,
    }
    said = ["exposed_seconds" in one for one in training.fields]
    assert said == [True, True, False, False, True]


def test_a_straggler_is_named_with_its_host() -> None:
    training = Training(ranks=3)
    training.make(WINDOW + 5, compute=(1.0, 1.3, 1.0))
    assert training.said == [
        "rank 1 on host-1 holds the others up: it was the slowest in most of the last 50 steps, "
        "and computed 30% longer than the median"
    ]


@pytest.mark.parametrize("settings", [{"ranks": 1}, {"every": 0}])
def test_alone_or_switched_off_nothing_is_watched(settings: dict[str, int]) -> None:
    training = Training(**settings)
    training.make(20)
    assert training.traffic.counts == [] and training.records == []
    assert training.fields == [{}] * 20
    assert training.watch.summary.line() is None


def test_a_model_that_the_plan_does_not_know_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> None:
        raise ModelError("no shapes of it")

    monkeypatch.setattr(communication, "predict_traffic", unknown)
    training = Training()
    training.make(5)
    assert training.said == [
        "communication: recorded without the plan's numbers, as no shapes of it"
    ]
    assert training.records[0].planned_bytes is None
