"""Pacing: how much of the difficulty may be drawn, as a function of where the run stands.

With tau = share of the curriculum that is done (0 .. 1), c0 = start and c1 = end::

    linear    c0 + (c1 - c0) tau
    root      (c0^p + (c1^p - c0^p) tau)^(1/p)             Platanios et al., arXiv 1903.09848
    wu_root   c0 + (c1 - c0) tau^0.5                       this and the next ones: Wu, Dyer and
    quad      c0 + (c1 - c0) tau^2                         Neyshabur, ICLR 2021 (with c1 = 1)
    exp       c0 + (c1 - c0) (e^(10 tau) - 1) / (e^10 - 1)
    log       c0 + (c1 - c0) (1 + ln(tau + e^-10) / 10)
    step      c0 before the end, then c1
    discrete  one level after another

Two functions are called root: at c0 = 0.1, c1 = 1 and tau = 0.25 Platanios' square root gives
0.507, Wu's 0.55. Everything is clipped at 1. A pool shrinks where c1 < c0, or where levels fall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ds_train.config.curriculum import CurriculumConfig, PacingConfig, PacingType
from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError
from ds_train.units import Duration, Unit

if TYPE_CHECKING:  # `validate` answers without numpy
    from ds_train.data.epochs import Totals


@dataclass(frozen=True)
class RunLength:
    """How long a run is, in the unit that limits it, and how far into it a place is."""

    limit: Duration
    global_batch_size: int
    num_samples: int
    """Samples of an epoch."""

    @classmethod
    def of(cls, config: RunConfig, global_batch_size: int, num_samples: int) -> RunLength:
        """The length that the recipe gives; ConfigError where curriculum.unit asks for another."""
        train, curriculum = config.train, config.curriculum
        lengths: list[tuple[float | None, Unit, str]] = [
            (train.max_tokens, "tokens", "max_tokens"),
            (train.max_steps, "steps", "max_steps"),
            (train.num_train_epochs, "epochs", "num_train_epochs"),
        ]
        amount, unit, field = next(one for one in lengths if one[0] is not None)
        wanted = curriculum.unit if curriculum is not None else None
        if wanted is not None and wanted != _UNIT_NAMES[unit]:
            needed = next(name for _, other, name in lengths if _UNIT_NAMES[other] == wanted)
            raise ConfigError(
                f"curriculum.unit = {wanted}: the run's length is given by train.{field}, so its "
                f"progress is known in {_UNIT_NAMES[unit]}; give train.{needed} instead, or "
                "remove curriculum.unit."
            )
        assert amount is not None
        return cls(Duration(float(amount), unit), global_batch_size, num_samples)

    def amount(self, unit: Unit, at: Totals) -> float:
        """What stands before a place, in steps, tokens or epochs."""
        if unit == "steps":
            return at.rows / self.global_batch_size
        return at.tokens if unit == "tokens" else at.samples / self.num_samples

    def progress(self, at: Totals) -> float:
        """Share of the run before a place, 0 .. 1."""
        return min(1.0, self.amount(self.limit.unit, at) / self.limit.amount)

    def reached(self, place: float | Duration, at: Totals) -> float:
        """Share of the way to `place` (a share of the run, or a length): 1 or more is past it."""
        unit, amount = self.resolve(place)
        return self.amount(unit, at) / amount if amount else 1.0

    def resolve(self, place: float | Duration) -> tuple[Unit, float]:
        """A place as so many steps, tokens or epochs from the start."""
        if isinstance(place, Duration):
            return place.unit, place.amount
        return self.limit.unit, place * self.limit.amount


def refresh_steps(config: RunConfig) -> tuple[int, ...]:
    """Steps (the first is 0) before which the model scores the samples again, rising.

    The first step that begins at or after each share in `refresh_at`; none where nothing is
    ordered by difficulty, or where the run's length is not given in steps (which is refused).
    """
    curriculum, max_steps = config.curriculum, config.train.max_steps
    if curriculum is None or curriculum.order == "uniform" or max_steps is None:
        return ()
    return tuple(math.ceil(round(share * max_steps, 6)) for share in curriculum.refresh_at)


_UNIT_NAMES: dict[Unit, Literal["tokens", "steps", "samples"]] = {
    "tokens": "tokens",
    "steps": "steps",
    "epochs": "samples",
}


def paced(kind: PacingType, tau: float, start: float, end: float, p: float = 2) -> float:
    """Value between `start` and `end` at tau = 0 .. 1 of the way; any kind but discrete."""
    tau = min(max(tau, 0.0), 1.0)
    if kind == "root":
        return float((start**p + (end**p - start**p) * tau) ** (1 / p))
    shapes = {
        "linear": tau,
        "wu_root": math.sqrt(tau),
        "quad": tau**2,
        "exp": math.expm1(10 * tau) / math.expm1(10),
        "log": 1 + math.log(tau + math.exp(-10)) / 10,
        "step": float(tau >= 1),
    }
    return start + (end - start) * min(max(shapes[kind], 0.0), 1.0)


def competence(curriculum: CurriculumConfig, length: RunLength, at: Totals) -> float:
    """Share of the difficulty that may be drawn at a place of the run, at most 1."""
    pacing = curriculum.pacing
    if pacing.type == "discrete":
        passed = sum(length.reached(place, at) >= 1 for place in pacing.at)
        return pacing.levels[passed]
    tau = length.reached(pacing.end_at, at)
    if tau >= 1 and curriculum.then == "uniform":
        return 1.0
    return min(1.0, paced(pacing.type, tau, pacing.start, pacing.end, pacing.p))


def curriculum_end(pacing: PacingConfig) -> float | Duration:
    """Where the pool changes for the last time: a share of the run, or a length."""
    if pacing.type != "discrete":
        return pacing.end_at
    return pacing.at[-1] if pacing.at else 0.0
