"""Gradual unfreezing under any ZeRO stage: what is frozen has zero gradients and no learning rate.

Switching `requires_grad` would change what DeepSpeed has partitioned. Instead the gradients of
frozen parameters become zero before anything sees them, so that neither the gradient norm nor the
moments of Adam know of them, and a rate of 0 leaves out weight decay. When a group joins, its count
of updates begins at 0: otherwise Adam's bias correction would take its empty moments for settled
ones, and its first updates would be three times too large (beta 0.9 and 0.999).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Thaw:
    """Which stages of unfreezing have joined; stage 0 trains from the start."""

    def __init__(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """`groups` of `parameter_groups`, before DeepSpeed has taken them apart."""
        self.stage = self.last_stage = 0
        for group in groups:
            self.last_stage = max(self.last_stage, group["stage"])
            for parameter in group["params"]:
                if group["stage"]:
                    parameter.register_hook(self._hook(parameter, group["stage"]))

    def _hook(self, parameter: nn.Parameter, stage: int) -> Callable[[Tensor], Tensor]:
        def hide(gradient: Tensor) -> Tensor:
            return gradient if stage <= self.stage else torch.zeros_like(gradient)

        return hide

    def rate(self, group: Mapping[str, Any]) -> float:
        """1 for a group that trains, 0 for one that is frozen."""
        return float(group.get("stage", 0) <= self.stage)


def restart_count(states: Iterable[dict[str, Any]], num_updates: int) -> None:
    """Let optimizer states have made so many updates; those without any yet stay so."""
    for state in states:
        if torch.is_tensor(state.get("step")):
            state["step"].fill_(num_updates)
        elif "step" in state:
            state["step"] = num_updates
