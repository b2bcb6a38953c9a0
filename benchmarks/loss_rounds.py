"""Times peers against each other: one process, every peer once a round, in changing order.

What disturbs the machine then meets all of them alike, and the speed of one is its ratio to eager
within the same round, of which the median over the rounds counts.
"""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from loss_inputs import Case, Inputs, Truth
from loss_peers import LossFunction, Peer, Unavailable
from torch import Tensor

Clock = Callable[[Callable[[], Any]], tuple[float, float, Any]]
"""Calls something: seconds, seconds of all processor threads, and what it returned."""


_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python has no name for it


def cpu_clock(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """A `Clock` for work on the CPU."""
    began, began_cpu = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - began, time.process_time() - began_cpu, result


def clock_with_pages(num_bytes: int) -> Clock:
    """`cpu_clock` on a machine that has so much memory at hand.

    A virtual machine with a balloon gives memory back that nobody has used for a second or two. To
    have it again takes up to twenty times as long as on a machine of one's own (61 ms and 1290 for
    525 MB), and meets at random whoever comes after a pause. A training has no such pause.
    """

    def clock(call: Callable[[], Any]) -> tuple[float, float, Any]:
        with mmap.mmap(-1, num_bytes) as memory, suppress(AttributeError, OSError, ValueError):
            memory.madvise(mmap.MADV_HUGEPAGE)
            memory.madvise(_MADV_POPULATE_WRITE)
        return cpu_clock(call)

    return clock


@dataclass
class Run:
    """What was measured of one peer on one case; `reason` says why there is nothing."""

    peer: str
    reason: str | None = None
    seconds: list[float | None] = field(default_factory=list)
    """one a round; None in rounds that it was left out of"""
    cpu_seconds: list[float | None] = field(default_factory=list)
    """of all threads, beside `seconds`: what other programs take away is not in it"""
    errors: dict[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    kept_bytes: int | None = None
    memory_reason: str | None = None

    @property
    def measured(self) -> list[float]:
        """The rounds that it took part in."""
        return [value for value in self.seconds if value is not None]

    @property
    def fastest(self) -> float:
        """Seconds."""
        return min(self.measured)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.measured)

    def ratio_to(self, other: Run) -> float | None:
        """Median over the rounds that both took part in of the other's time by this one's."""
        return _median_ratio(self.seconds, other.seconds)

    def cpu_ratio_to(self, other: Run) -> float | None:
        """The same of processor time."""
        return _median_ratio(self.cpu_seconds, other.cpu_seconds)


def _median_ratio(mine: list[float | None], others: list[float | None]) -> float | None:
    pairs = zip(mine, others, strict=False)
    ratios = [b / a for a, b in pairs if a and b is not None]
    return statistics.median(ratios) if ratios else None


class Call:
    """Forward and backward of one loss function on leaves of its own."""

    def __init__(self, loss: LossFunction, case: Case, inputs: Inputs, tokens: int | None = None):
        self.loss, self.case = loss, case
        self.hidden = inputs.hidden[:tokens].detach().requires_grad_()
        self.weight = inputs.weight.detach().requires_grad_(not case.frozen)
        self.labels = inputs.labels(case)[:tokens]

    def clear(self) -> None:
        """Free the gradients."""
        self.hidden.grad = self.weight.grad = None

    def __call__(self) -> Tensor:
        loss = self.loss(self.hidden, self.weight, self.labels)
        loss.backward()
        return loss.detach()


@dataclass(frozen=True)
class Limits:
    """How much time peers get."""

    rounds: int
    seconds: float
    """of timed calls per peer and case; at least one call is made"""
    one_call_seconds: float
    """a peer is left out where a call would take longer, judging by an eighth of the tokens"""


def measure(
    peers: tuple[Peer, ...],
    case: Case,
    inputs: Inputs,
    truth: Truth,
    limits: Limits,
    clock: Clock = cpu_clock,
    warm_ups: int = 1,
    memory: Callable[[Call], int] | None = None,
) -> dict[str, Run]:
    """Times and errors of all peers on a case, and their memory if there is a way to measure it."""
    runs = {peer.name: Run(peer.name) for peer in peers}
    calls: dict[str, Call] = {}
    for peer in peers:
        try:
            calls[peer.name] = _prepared(peer, case, inputs, limits, clock, warm_ups)
        except Unavailable as error:
            runs[peer.name].reason = str(error)
    for number in range(limits.rounds):
        for name in in_turn(list(calls), number):
            run = runs[name]
            if run.reason is None:
                seconds, cpu_seconds = _timed(run, calls[name], truth, limits, clock)
                run.seconds.append(seconds)
                run.cpu_seconds.append(cpu_seconds)
    if memory is not None:
        for name, call in calls.items():
            if runs[name].reason is None:
                runs[name].memory_bytes = memory(call)
                call.clear()
    return runs


def in_turn(names: list[str], number: int) -> list[str]:
    """Order of a round: each peer begins once, and every other round runs backwards."""
    if not names:
        return []
    start = number % len(names)
    order = names[start:] + names[:start]
    return order[::-1] if number % 2 else order


def _prepared(
    peer: Peer, case: Case, inputs: Inputs, limits: Limits, clock: Clock, warm_ups: int
) -> Call:
    """A peer that has run before; on a GPU with the whole case, as it compiles and tunes there."""
    call = Call(peer.make(case, inputs.hidden.device), case, inputs)
    whole = peer.compiles or inputs.hidden.is_cuda
    try:
        if whole:
            for _ in range(warm_ups):
                clock(call)
                call.clear()
        elif (about := _estimate(call, inputs, limits, clock)) > limits.one_call_seconds:
            raise Unavailable(f"left out: one call would take about {about:.0f} s")
    except Unavailable:
        raise
    except Exception as error:
        call.clear()
        raise Unavailable(_first_line(error)) from error
    return call


def _estimate(call: Call, inputs: Inputs, limits: Limits, clock: Clock) -> float:
    """About how long a call takes, judging by an eighth of the tokens, and a quarter in doubt."""

    def timed(part: int) -> float:
        tokens = max(1, call.case.tokens // part)
        return clock(Call(call.loss, call.case, inputs, tokens))[0]

    eighth = timed(8)
    if eighth * 8 <= limits.one_call_seconds:
        return eighth * 8
    # part of it may not depend on the number of tokens, or have been loading
    return eighth + 7 * max(0.0, timed(4) - eighth)


def _timed(
    run: Run, call: Call, truth: Truth, limits: Limits, clock: Clock
) -> tuple[float, float] | tuple[None, None]:
    if sum(run.measured) > limits.seconds:
        return None, None
    try:
        seconds, cpu_seconds, loss = clock(call)
        if not run.errors:
            run.errors = truth.errors(call.labels, loss, call.hidden.grad, call.weight.grad)
    except Exception as error:  # noqa: BLE001
        run.reason = _first_line(error)
        return None, None
    finally:
        call.clear()
    return seconds, cpu_seconds


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:160]
