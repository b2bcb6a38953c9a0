"""How far this process has come: set by what works, read by the watchdog's thread.

One place of the process, not an object that is handed around: a forward pass deep inside an
evaluation counts as well as a step of the loop.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Marks:
    """Where this process is, in an order that is the same on every rank."""

    phase: str = "setting up"
    """What it is doing, for people: `step 8`, `evaluation after step 8`."""
    number: int = 0
    """Of the phase; each new one counts one more."""
    gates: int = 0
    """Collectives of our own that it has come to within the phase."""
    count: int = 0
    """Marks since the last of these; ranks may make more or fewer of them."""
    num_steps: int = 0
    """Steps begun in this process; the first may compile."""
    was_asked: bool = False
    """Somebody asked this process to stop: it was alive then."""
    at: float = field(default_factory=time.monotonic)
    """Of the last mark."""


now = Marks()
"""Of this process."""


def tick() -> None:
    """Something was done: a forward pass, a parameter copied."""
    now.count += 1
    now.at = time.monotonic()


def gate() -> None:
    """Every rank comes to a collective."""
    now.gates, now.count = now.gates + 1, 0
    now.at = time.monotonic()


def begin(phase: str) -> None:
    """Every rank begins something else."""
    now.phase, now.gates, now.count = phase, 0, 0
    now.number += 1
    now.at = time.monotonic()


def begin_step(step: int) -> None:
    """Every rank begins an optimizer step (counted from 1)."""
    now.num_steps += 1
    begin(f"step {step}")


def asked() -> None:
    """This process was asked to stop."""
    now.was_asked = True
