"""The learning rate as a pure function of where the run stands.

    warm-up:   peak x (steps + 1) / warmup         for steps 0 .. warmup - 1
    constant:  peak
    linear:    peak x (1 - (1 - m) p)              p: share of the rest that is done, 0 .. 1
    cosine:    peak x (m + (1 - m)(1 + cos(pi p)) / 2)
    wsd:       peak until the last decay_fraction of the run, then linear down to m x peak

m is min_lr_ratio. Worked example: peak 1.0, 2 steps of warm-up, 4 steps, linear, m = 0:
0.5, 1.0, 1.0, 0.5. The first step after the warm-up has p = 0, and p = 1 would be the step after
the last one, so that the last step still learns something.

p is measured in what limits the run: in tokens with train.max_tokens, in steps otherwise. Where
rows grow as the run goes on (curriculum), its first half in steps is far less than half of its
tokens, and arms of a comparison that make other numbers of steps out of the same tokens must have
the same rate at the same token. Four steps of 10, 10, 20, 40 tokens, linear, m = 0, max_tokens 80:
1, 0.875, 0.75, 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ds_train.config.train import TrainConfig
from ds_train.units import Duration

if TYPE_CHECKING:  # `validate` answers without numpy
    from ds_train.data.order import StepPlan


def num_warmup_steps(config: TrainConfig, plan: StepPlan, total_steps: int) -> int:
    """Steps of the warm-up; a length in tokens or epochs is rounded up to whole steps."""
    warmup = config.warmup_steps
    if isinstance(warmup, Duration):
        return plan.steps_reaching(warmup)
    return math.ceil(warmup * total_steps) if isinstance(warmup, float) else warmup


class Schedule:
    """The learning rate of every step of a run.

    Args:
        warmup: steps of the warm-up.
        tokens_before: tokens trained on when a step begins; wanted where train.max_tokens limits
            the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        total_steps: int,
        warmup: int,
        tokens_before: Callable[[int], int] | None = None,
    ) -> None:
        if config.max_tokens is not None and tokens_before is None:
            raise ValueError("train.max_tokens is given: the decay goes by tokens_before")
        self._config, self._warmup = config, warmup
        self._tokens_before = None if config.max_tokens is None else tokens_before
        self.decay_start, self.decay_end = self._span(total_steps)

    def _span(self, total_steps: int) -> tuple[float, float]:
        """(start, end) of the decay: tokens in a run limited by tokens, steps in any other."""
        config = self._config
        start, end = self.position(self._warmup), float(config.max_tokens or total_steps)
        if config.lr_scheduler_type == "wsd":
            stays = end * (1 - config.decay_fraction)
            start = max(start, round(stays) if self._tokens_before is None else stays)
        return start, end

    def position(self, step: int) -> float:
        """Where a step begins, in what the decay goes by."""
        return float(step if self._tokens_before is None else self._tokens_before(step))

    def rate(self, step: int) -> float:
        """Learning rate of `step` (the first is 0)."""
        if step < self._warmup:
            return self._config.learning_rate * (step + 1) / self._warmup
        return self._config.learning_rate * self.share_at(self.position(step))

    def share_at(self, position: float) -> float:
        """Share of the peak at a position after the warm-up."""
        config, low = self._config, self._config.min_lr_ratio
        if config.lr_scheduler_type == "constant":
            return 1.0
        start, length = self.decay_start, self.decay_end - self.decay_start
        progress = min(max((position - start) / length, 0.0), 1.0) if length > 0 else 1.0
        if config.lr_scheduler_type == "cosine":
            return low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2
        return 1 - (1 - low) * progress
