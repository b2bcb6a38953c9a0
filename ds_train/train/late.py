"""A warning: the curriculum ends after the learning rate has begun to fall.

What a curriculum keeps for the end then meets the smallest rates. Luo et al. (arXiv 2511.18903)
find that this wastes it: with a constant rate an ascending order beats a shuffled one, under a full
decay it does not. A moderate decay, to about 1/3 of the peak, is among their remedies, so nothing
is said from `MODERATE` on.

`late_curriculum` knows the plan of the run and is exact; `likely_late_curriculum` has the recipe
alone (`ds-train validate`), takes steps to be equally long, and says nothing of lengths that can't
be compared without the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ds_train.config.curriculum import CurriculumConfig
from ds_train.config.run import RunConfig
from ds_train.config.train import TrainConfig
from ds_train.errors import NotScoredYet
from ds_train.train.schedule import Schedule
from ds_train.units import Duration

if TYPE_CHECKING:  # `validate` answers without numpy
    from ds_train.data.order import StepPlan

MODERATE = 0.3
"""A decay that ends here or above is not warned about."""

_SOFT_ORDERS = ("uniform", "random_pool")
_STEPS = 10_000
"""Steps that a run of unknown length is taken to have in an estimate."""

Place = float | Duration


def late_curriculum(config: RunConfig, schedule: Schedule, plan: StepPlan) -> str | None:
    """The warning about a run whose plan is known, or None.

    None too where the curriculum ends beyond what is known of a run that scores its samples again.
    """
    try:
        places = [
            (field, place, _position(config.train, place, plan)) for field, place in ends(config)
        ]
    except NotScoredYet:
        return None
    return _warning(config.train, schedule, places)


def likely_late_curriculum(config: RunConfig) -> str | None:
    """The same before the data is known, or None."""
    train = config.train
    total = train.max_steps or _STEPS
    warmup = train.warmup_steps
    share = _share(train, warmup if isinstance(warmup, Duration) else _as_place(warmup))
    schedule = Schedule(
        train,
        total_steps=total,
        # one of unknown length is taken to be short
        warmup=round((share or 0.0) * total),
        tokens_before=lambda step: step * (train.max_tokens or 0) // total,
    )
    places = [
        (field, place, share * schedule.decay_end)
        for field, place in ends(config)
        if (share := _share(train, place)) is not None
    ]
    return _warning(train, schedule, places)


def ends(config: RunConfig) -> Iterator[tuple[str, Place]]:
    """(setting, place) of each part of the curriculum that keeps something for its end."""
    curriculum = config.curriculum
    if curriculum is None:
        return
    if curriculum.order not in _SOFT_ORDERS and curriculum.window is None and _changes(curriculum):
        pacing = curriculum.pacing
        if pacing.type == "discrete":
            yield "curriculum.pacing.at", pacing.at[-1]
        else:
            yield "curriculum.pacing.end_at", pacing.end_at
    if curriculum.seq_len is not None:
        yield "curriculum.seq_len.end_at", curriculum.seq_len.end_at


def _changes(curriculum: CurriculumConfig) -> bool:
    pacing = curriculum.pacing
    if pacing.type == "discrete":
        return len(pacing.levels) > 1
    return pacing.start != pacing.end or (curriculum.then == "uniform" and pacing.end < 1)


def _as_place(warmup: int | float) -> Place:
    return warmup if isinstance(warmup, float) else Duration(warmup, "steps")


def _share(train: TrainConfig, place: Place) -> float | None:
    """A place as a share of the run; None where that takes more than the recipe."""
    if not isinstance(place, Duration):
        return place
    limits = {"steps": train.max_steps, "tokens": train.max_tokens}
    limit = limits.get(place.unit, train.num_train_epochs)
    return None if limit is None else place.amount / limit


def _position(train: TrainConfig, place: Place, plan: StepPlan) -> float:
    """A place in what the decay goes by: tokens in a run limited by tokens, steps in any other."""
    if not isinstance(place, Duration):
        if train.max_tokens is not None:
            place = Duration(place * train.max_tokens, "tokens")
        elif train.max_steps is not None:
            place = Duration(place * train.max_steps, "steps")
        else:
            place = Duration(place * (train.num_train_epochs or 0), "epochs")
    if place.unit == ("tokens" if train.max_tokens is not None else "steps"):
        return place.amount
    if place.unit == "steps":
        return float(plan.tokens_before(round(place.amount)))
    # the beginning of the step in which it is reached
    step = max(plan.steps_reaching(place) - 1, 0)
    return float(step if train.max_tokens is None else plan.tokens_before(step))


def _warning(
    train: TrainConfig, schedule: Schedule, places: list[tuple[str, Place, float]]
) -> str | None:
    if not places or train.lr_scheduler_type == "constant" or train.min_lr_ratio >= MODERATE:
        return None
    field, place, position = max(places, key=lambda one: one[2])
    start, end, rate = schedule.decay_start, schedule.decay_end, schedule.share_at(position)
    # in steps the start of the decay is a rounded one
    slack = 0.5 if train.max_tokens is None else 1e-9 * end
    if position <= start + slack:
        return None
    at = min(position / end, 1.0)
    kind = train.lr_scheduler_type
    stay = f"train.lr_scheduler_type: wsd with decay_fraction {_down(1 - at)} or less"
    if at > 0.98:
        stay = "train.lr_scheduler_type: constant with `ds-train export --average`"
    return (
        f"warning: {field} = {place}: the curriculum ends at {at:.0%} of the run, and the learning "
        f"rate ({kind}) falls from {start / end:.0%} on; it is at {rate:.0%} of its peak there, so "
        f"what the curriculum keeps for its end is learned at a small rate. "
        f"Give train.min_lr_ratio ({MODERATE} or more), or {stay}, or end the curriculum earlier."
    )


def _down(share: float) -> str:
    """Rounded down, so that what the message proposes is enough."""
    return f"{int(share * 100 + 1e-6) / 100:.2g}"
