"""What communication costs a step: where the rank waits, and in counted steps every collective.

In every step that is watched the calls of DeepSpeed's backend, and the waits for what they have
begun, are timed as they are: what is hidden behind computation stays hidden (stopwatch.py).

In a counted step DeepSpeed's communication logger is on. It makes each collective blocking, so
that its time can be told, and nothing overlaps. Two things of DeepSpeed 0.19.8 are mended for that
step: on a CPU its logger does not wait for an asynchronous collective (it synchronises a device,
which a CPU is not), and its timer is never emptied, so that each latency is the sum of all before
it. Numbers and results of the step are the same as ever.

Outside of `watched` nothing of DeepSpeed or torch is touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ds_train.engine.ranks import Ranks
from ds_train.engine.stopwatch import Lap, Stopwatch, clock_of
from ds_train.report.traffic import Calls

_COLLECTIVES = (
    *("all_reduce", "all_reduce_coalesced", "reduce", "broadcast", "barrier"),
    *("all_gather", "all_gather_into_tensor", "all_gather_coalesced"),
    *("reduce_scatter", "reduce_scatter_tensor", "all_to_all", "all_to_all_single"),
)
_STREAM_WAITS = ("wait_event", "wait_stream", "synchronize")


class Traffic:
    """Watches the collectives of a process."""

    def __init__(self, comm: Any, ranks: Ranks, stopwatch: Stopwatch | None = None) -> None:
        """`comm`: the module deepspeed.comm.comm, after the process group has been started."""
        self._comm = comm
        self._ranks = ranks
        self._on_gpu = ranks.device.type == "cuda"
        self._stopwatch = stopwatch or Stopwatch(clock_of(ranks.device))
        self._is_counting = False
        self._exchange: Calls | None = None
        self.num_alike = 0
        """Steps made since the model last changed between training and evaluation."""
        self.counted: list[Calls] | None = None
        """Of the last step that was counted."""

    @contextmanager
    def watched(self, *, count: bool = False) -> Iterator[None]:
        """Around one step; `count` also counts its collectives, and makes them blocking."""
        self._stopwatch.start()
        undo = [self._replace(*target) for target in self._targets()]
        try:
            if count:
                with self._logger() as logged:
                    yield
                self.counted = [*logged, *([self._exchange] if self._exchange else [])]
            else:
                yield
        finally:
            for put_back in undo:
                put_back()
            self._stopwatch.stop()

    @property
    def settled(self) -> bool:
        """Whether a step communicates as most do: ZeRO-3 learns the order of modules in the first
        one after a change, without prefetching, and compares it between ranks up to the second."""
        return self.num_alike >= 2

    def lap(self) -> Lap:
        """Since the last exchange, as far as it was watched."""
        return self._stopwatch.lap()

    def exchange(self, message: Tensor) -> Tensor:
        """Sum of all ranks' messages, on the host: the collective with which a step tells all."""
        began = time.perf_counter()
        told: Tensor = self._stopwatch.stands_still_in(lambda: self._ranks.sum(message).cpu())
        size = message.numel() * message.element_size()
        self._exchange = Calls("exchange", size, 1, time.perf_counter() - began)
        return told

    def _targets(self) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        """What is replaced: owner, name, and what makes the new function from the old one."""
        for name in _COLLECTIVES:
            if hasattr(self._comm.cdb, name):
                yield self._comm.cdb, name, self._timed
        if self._on_gpu:
            for name in _STREAM_WAITS:
                yield torch.cuda.Stream, name, self._timed_stream

    def _replace(self, owner: Any, name: str, make: Callable[..., Any]) -> Callable[[], None]:
        """Set owner.name for the time being; what is returned puts the old one back."""
        own, old = vars(owner).get(name), getattr(owner, name)
        setattr(owner, name, make(old))
        return lambda: delattr(owner, name) if own is None else setattr(owner, name, own)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._is_counting:
                return self._blocking(call, *args, **kwargs)
            work = self._stopwatch.waits_in(call, *args, **kwargs)
            return _Awaited(work, self._stopwatch) if hasattr(work, "wait") else work

        return timed

    def _blocking(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for timer in self._comm.timers.timers.values():
            timer.event_timers.clear()  # of earlier calls; the one that runs comes later

        def finish() -> Any:
            work = call(*args, **kwargs)
            if hasattr(work, "wait"):
                work.wait()  # may be waited for again
            if self._on_gpu:
                torch.cuda.synchronize()
            return work

        return self._stopwatch.stands_still_in(finish)

    def _timed_stream(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(stream: Any, *args: Any) -> Any:
            if call.__name__ == "synchronize":  # the host waits, and gives no stream more to do
                return self._stopwatch.stands_still_in(call, stream, *args)
            return self._stopwatch.waits_in(call, stream, *args, stream=stream)

        return timed

    @contextmanager
    def _logger(self) -> Iterator[list[Calls]]:
        """DeepSpeed's logger on, as empty as its timers; the list is filled at the end."""
        logger, timers = self._comm.comms_logger, self._comm.timers
        found: list[Calls] = []
        settings = ("enabled", "prof_all", "verbose", "comms_dict")
        before = {name: getattr(logger, name) for name in settings}
        old_timers, timers.timers = timers.timers, {}
        logger.enabled, logger.prof_all, logger.verbose, logger.comms_dict = True, True, False, {}
        self._is_counting = True
        try:
            yield found
        finally:
            self._is_counting = False
            found += calls_of(logger.get_raw_data())
            timers.timers = old_timers
            for name, value in before.items():
                setattr(logger, name, value)


def calls_of(raw: dict[str, dict[int, list[Any]]]) -> list[Calls]:
    """What the logger has: {collective: {message bytes: [number, [milliseconds], ...]}}."""
    return [
        Calls(operation, size, entry[0], sum(entry[1]) / 1e3)
        for operation, sizes in raw.items()
        for size, entry in sizes.items()
    ]


class _Awaited:
    """A collective that is under way, whose wait is timed."""

    def __init__(self, work: Any, stopwatch: Stopwatch) -> None:
        self._work, self._stopwatch = work, stopwatch

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        return self._stopwatch.waits_in(self._work.wait, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
