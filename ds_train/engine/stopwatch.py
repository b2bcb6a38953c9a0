"""How long a rank computes in a step, and how long it stands still because of communication.

On the CPU both are wall time of the process. On a GPU, where the host only queues work, they are
time of the stream that computes: events are recorded on it, and read once it has passed them. What
runs on other streams meanwhile is hidden behind computation and does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Lap:
    """What lies between two exchanges of a run's ranks, without what lies between its steps."""

    compute_seconds: float = 0.0
    waiting_seconds: float = 0.0


class Clock(Protocol):
    """Moments, and the time between two of them."""

    def now(self) -> Any:
        """This moment."""

    def seconds(self, first: Any, second: Any) -> float:
        """Between two moments, after `settle` of the second or a later one."""

    def settle(self, moment: Any) -> None:
        """Wait until a moment has come."""

    def concerns(self, stream: Any) -> bool:
        """Whether a stream (None: the one in use) is the one that computes."""


class HostClock:
    """Wall time: calls return when their work is done."""

    def now(self) -> float:
        return time.perf_counter()

    def seconds(self, first: float, second: float) -> float:
        return second - first

    def settle(self, moment: float) -> None:
        pass

    def concerns(self, stream: Any) -> bool:
        return True


class StreamClock:
    """Time of the stream that computes."""

    def __init__(self, cuda: Any) -> None:
        """`cuda`: torch.cuda, whose current stream is taken."""
        self._cuda = cuda
        self._stream = cuda.current_stream()

    def now(self) -> Any:
        event = self._cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def seconds(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second)) / 1e3

    def settle(self, moment: Any) -> None:
        moment.synchronize()

    def concerns(self, stream: Any) -> bool:
        return bool((self._cuda.current_stream() if stream is None else stream) == self._stream)


def clock_of(device: torch.device) -> Clock:
    """The clock that measures a device."""
    return StreamClock(torch.cuda) if device.type == "cuda" else HostClock()


class Stopwatch:
    """Runs within steps; tells computing from waiting."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began: Any = None
        self._is_waiting = False
        self._worked: list[tuple[Any, Any]] = []
        self._waited: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """A step begins."""
        self._began = self._clock.now()

    def stop(self) -> None:
        """It ends."""
        self._worked.append((self._began, self._clock.now()))
        self._began = None

    def waits_in(self, call: Callable[..., T], *args: Any, stream: Any = None, **kwargs: Any) -> T:
        """Call something in which a stream (None: the one in use) waits for others."""
        if not self._clock.concerns(stream):
            return call(*args, **kwargs)
        return self.stands_still_in(call, *args, **kwargs)

    def stands_still_in(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call something in which the whole rank waits for others."""
        if self._began is None or self._is_waiting:
            return call(*args, **kwargs)
        first, self._is_waiting = self._clock.now(), True
        try:
            return call(*args, **kwargs)
        finally:
            self._is_waiting = False
            self._waited.append((first, self._clock.now()))

    def lap(self) -> Lap:
        """Since the last one; nothing outside a step. Waits for the device."""
        if self._began is None:
            return Lap()
        now = self._clock.now()
        self._worked.append((self._began, now))
        self._clock.settle(now)
        worked = sum(self._clock.seconds(*pair) for pair in self._worked)
        waited = sum(self._clock.seconds(*pair) for pair in self._waited)
        self._worked, self._waited, self._began = [], [], now
        return Lap(worked - waited, waited)
