"""Collectives are timed, and counted with DeepSpeed's own logger, which is left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ds_train.engine.ranks import Ranks
from ds_train.engine.stopwatch import HostClock, Stopwatch
from ds_train.engine.traffic import Traffic
from ds_train.report.traffic import Calls


class SetClock(HostClock):
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


class Work:
    """An asynchronous collective that takes 2 s to wait for."""

    def __init__(self, clock: SetClock) -> None:
        self._clock, self.is_done = clock, False

    def wait(self) -> bool:
        self._clock.time += 0.0 if self.is_done else 2.0
        self.is_done = True
        return True

    def is_completed(self) -> bool:
        return self.is_done


class Backend:
    """Stands for DeepSpeed's backend, with the two kinds of calls."""

    def __init__(self, clock: SetClock) -> None:
        self._clock = clock
        self.using_mpi = False

    def all_reduce(self, tensor: Any, op: Any, group: Any, async_op: bool) -> None:
        self._clock.time += 1.0

    def all_gather_into_tensor(self, **kwargs: Any) -> Work:
        return Work(self._clock)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def comm(clock: SetClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The real deepspeed.comm.comm over a backend of ours, with its timers on our clock."""
    pytest.importorskip("deepspeed")
    from deepspeed.comm import comm as module
    from deepspeed.utils import timer

    class Time:
        @staticmethod
        def time() -> float:
            return clock.time

    monkeypatch.setattr(timer, "time", Time)
    monkeypatch.setattr(module, "cdb", Backend(clock))
    monkeypatch.setattr("deepspeed.utils.comms_logging.calc_bw_log", lambda *a: (0.0, 0.0))
    yield module


@pytest.fixture
def traffic(comm: Any, clock: SetClock) -> Traffic:
    return Traffic(comm, Ranks(0, 0, 1), Stopwatch(clock))


TENSOR = torch.zeros(256)


def test_waits_are_timed_where_they_happen(traffic: Traffic, comm: Any, clock: SetClock) -> None:
    with traffic.watched():
        comm.all_reduce(TENSOR)
        handle = comm.all_gather_into_tensor(TENSOR, TENSOR, async_op=True)
        clock.time += 5.0  # computing meanwhile
        assert not handle.is_completed()
        assert handle.wait() is True
        lap = traffic.lap()
    assert (lap.compute_seconds, lap.waiting_seconds) == (5.0, 3.0)
    assert traffic.counted is None


def test_a_counted_step_blocks_and_tells_bytes_and_seconds(traffic: Traffic, comm: Any) -> None:
    with traffic.watched(count=True):
        for _ in range(3):
            comm.all_reduce(TENSOR)
        handle = comm.all_gather_into_tensor(TENSOR, TENSOR, async_op=True)
        assert handle.is_completed()
        lap = traffic.lap()
    assert lap.waiting_seconds == 5.0
    assert traffic.counted == [
        Calls("all_reduce", 1024, 3, 3.0),
        Calls("all_gather_into_tensor", 1024, 1, 2.0),
    ]


def test_the_logger_of_deepspeed_alone_adds_up_what_came_before(comm: Any) -> None:
    """Why the timers are emptied: three calls of one second each are logged as 1, 2 and 3."""
    logger, before = comm.comms_logger, dict(vars(comm.comms_logger))
    comm.timers.timers = {}
    comm.configure(enabled=True, prof_all=True)
    logger.comms_dict = {}
    try:
        for _ in range(3):
            comm.all_reduce(TENSOR)
        (entry,) = logger.comms_dict["all_reduce"].values()
        assert entry[1] == [1000.0, 2000.0, 3000.0]
    finally:
        vars(logger).update(before)


def test_logger_and_backend_are_left_as_they_were(traffic: Traffic, comm: Any) -> None:
    logger = comm.comms_logger
    logger.comms_dict = {"of": "others"}
    before, own = dict(vars(logger)), dict(vars(comm.cdb))
    with pytest.raises(KeyError), traffic.watched(count=True):
        raise KeyError
    assert vars(logger) == before and vars(comm.cdb) == own
    logger.comms_dict = {}


def test_the_exchange_counts_too(traffic: Traffic) -> None:
    with traffic.watched(count=True):
        told = traffic.exchange(torch.ones(5, dtype=torch.float64))
    assert told.tolist() == [1.0] * 5
    assert traffic.counted is not None
    ((operation, size, number),) = [
        (one.operation, one.message_bytes, one.number) for one in traffic.counted
    ]
    assert (operation, size, number) == ("exchange", 40, 1)
