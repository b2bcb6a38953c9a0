"""When something is due that a recipe wants every so many steps, tokens or epochs."""

from __future__ import annotations

from dataclasses import dataclass

from ds_train.data.order import StepPlan
from ds_train.units import Duration


@dataclass(frozen=True)
class Position:
    """Where the run stands before a step."""

    step: int
    tokens: int
    """Tokens trained on so far."""
    epoch: float
    """Passes over the data so far."""


def position(plan: StepPlan, step: int) -> Position:
    """Where a run with this plan stands before a step, counted from 0."""
    return Position(step, plan.tokens_before(step), plan.epoch(step))


def is_due(every: Duration | None, before: Position, after: Position) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    if every is None:
        return False
    marks = {
        "steps": (before.step, after.step),
        "tokens": (before.tokens, after.tokens),
        # an epoch is a sum of fractions, and may come out a hair short
        "epochs": (before.epoch + 1e-9, after.epoch + 1e-9),
    }
    start, stop = marks[every.unit]
    return stop // every.amount > start // every.amount
