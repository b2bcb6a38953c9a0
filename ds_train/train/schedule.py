"""The learning rate as a pure function of where the run stands.

    warm-up:   peak x (steps + 1) / warmup         for steps 0 .. warmup - 1
    constant:  peak
    linear:    peak x (1 - (1 - m) p)              p: share of the rest that is done, 0 .. 1
    cosine:    peak x (m + (1 - m)(1 + cos(pi p)) / 2)
    wsd:       peak until the last decay_fraction of the run, then linear down to m x peak

m is min_lr_ratio. Worked example: peak 1.0, 2 steps of warm-up, 4 steps, linear, m = 0:
0.5, 1.0, 1.0, 0.5. The first step after the warm-up has p = 0, and p = 1 would be the step after
the last one, so that the last step still learns something.
"""

from __future__ import annotations

import math

from ds_train.config.train import TrainConfig
from ds_train.data.order import StepPlan
from ds_train.units import Duration


def num_warmup_steps(config: TrainConfig, plan: StepPlan, total_steps: int) -> int:
    """Steps of the warm-up; a length in tokens or epochs is rounded up to whole steps."""
    warmup = config.warmup_steps
    if isinstance(warmup, Duration):
        return plan.steps_reaching(warmup)
    return math.ceil(warmup * total_steps) if isinstance(warmup, float) else warmup


def learning_rate(config: TrainConfig, step: int, *, total_steps: int, warmup: int) -> float:
    """Learning rate of `step` (the first is 0); `warmup`: steps of the warm-up."""
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * _decay(config, step, total_steps, warmup)


def _decay(config: TrainConfig, step: int, total_steps: int, warmup: int) -> float:
    low = config.min_lr_ratio
    kind = config.lr_scheduler_type
    if kind == "constant":
        return 1.0
    start = warmup
    if kind == "wsd":
        start = max(start, round(total_steps * (1 - config.decay_fraction)))
    rest = total_steps - start
    progress = min(max((step - start) / rest, 0.0), 1.0) if rest > 0 else 1.0
    if kind == "cosine":
        return low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2
    return 1 - (1 - low) * progress
