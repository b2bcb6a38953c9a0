"""Computing and waiting are told apart, on the host and on a stream of a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from ds_train.engine.stopwatch import HostClock, Lap, Stopwatch, StreamClock


class TickingClock(HostClock):
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def pass_seconds(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def clock() -> TickingClock:
    return TickingClock()


def test_waiting_is_no_computing(clock: TickingClock) -> None:
    watch = Stopwatch(clock)
    watch.start()
    clock.pass_seconds(3)
    watch.waits_in(clock.pass_seconds, 2)
    clock.pass_seconds(1)
    assert watch.lap() == Lap(4.0, 2.0)


def test_a_lap_goes_from_exchange_to_exchange_without_what_lies_between_steps(
    clock: TickingClock,
) -> None:
    watch = Stopwatch(clock)
    watch.start()
    watch.lap()
    clock.pass_seconds(1)  # the update
    watch.stop()
    clock.pass_seconds(100)  # an evaluation
    watch.start()
    clock.pass_seconds(5)
    assert watch.lap() == Lap(6.0, 0.0)
    assert watch.lap() == Lap(0.0, 0.0)


def test_a_wait_within_a_wait_counts_once(clock: TickingClock) -> None:
    watch = Stopwatch(clock)
    watch.start()
    watch.waits_in(lambda: watch.waits_in(clock.pass_seconds, 2))
    assert watch.lap() == Lap(0.0, 2.0)


def test_a_wait_that_fails_is_over(clock: TickingClock) -> None:
    watch = Stopwatch(clock)
    watch.start()
    with pytest.raises(ZeroDivisionError):
        watch.waits_in(lambda: 1 / 0)
    watch.waits_in(clock.pass_seconds, 1)
    assert watch.lap() == Lap(0.0, 1.0)


def test_outside_a_step_nothing_is_measured(clock: TickingClock) -> None:
    watch = Stopwatch(clock)
    assert watch.waits_in(lambda: "answer") == "answer"
    assert watch.lap() == Lap()


@dataclass
class FakeCuda:
    """What a `StreamClock` asks of torch.cuda: streams whose time is set by hand."""

    stream: str = "computing"
    times: dict[str, float] = field(default_factory=lambda: {"computing": 0.0, "other": 0.0})
    synchronised: list[float] = field(default_factory=list)

    def current_stream(self) -> str:
        return self.stream

    def Event(self, *, enable_timing: bool) -> FakeEvent:
        assert enable_timing
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda, self.time = cuda, 0.0

    def record(self, stream: str) -> None:
        self.time = self._cuda.times[stream]

    def elapsed_time(self, later: Any) -> float:
        assert self._cuda.synchronised, "read before the device has come so far"
        return 1e3 * (later.time - self.time)

    def synchronize(self) -> None:
        self._cuda.synchronised.append(self.time)


def test_what_another_stream_waits_for_is_hidden() -> None:
    cuda = FakeCuda()
    watch = Stopwatch(StreamClock(cuda))

    def work(seconds: float, stream: str) -> None:
        cuda.times[stream] += seconds

    watch.start()
    work(3.0, "computing")
    cuda.stream = "other"  # `with torch.cuda.stream(...)`
    watch.waits_in(work, 2.0, "other")
    watch.waits_in(work, 0.5, "computing", stream="computing")  # computing.wait_stream(other)
    cuda.stream = "computing"
    watch.waits_in(work, 0.25, "computing")
    watch.waits_in(work, 9.0, "other", stream="other")  # other.wait_stream(computing)
    assert watch.lap() == Lap(3.0, 0.75)
    assert cuda.synchronised == [3.75]


def test_a_host_that_stands_still_counts_on_any_stream() -> None:
    cuda = FakeCuda()
    watch = Stopwatch(StreamClock(cuda))
    watch.start()
    cuda.stream = "other"

    def wait() -> None:
        cuda.times["computing"] += 2.0

    watch.stands_still_in(wait)
    assert watch.lap() == Lap(0.0, 2.0)
