"""Parameters that the optimizer treats alike: decay, factor of the rate, stage of unfreezing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    lora_plus_lr_ratio: float | None,
    rate_of: Callable[[str], float] = lambda name: 1.0,
    stage_of: Callable[[str], int] = lambda name: 0,
) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters; none of them is empty.

    Vectors (biases, norms, IA3 scales) are spared the decay; LoRA's B matrices get
    `lr_scale` = lora_plus_lr_ratio. An empty group would make DeepSpeed and torch disagree about
    the number of groups, so only those with parameters are returned.

    Args:
        rate_of: parameter name -> factor of its learning rate.
        stage_of: parameter name -> stage of gradual unfreezing from which it trains (`stage`).
    """
    groups: dict[tuple[int, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        shape = getattr(parameter, "ds_shape", parameter.shape)
        decay = weight_decay if len(shape) >= 2 else 0.0
        is_b = ".lora_B." in name or ".lora_embedding_B." in name
        scale = lora_plus_lr_ratio if lora_plus_lr_ratio is not None and is_b else 1.0
        key = stage_of(name), decay, scale * rate_of(name)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "lr_scale": scale, "stage": stage}
        for (stage, decay, scale), params in sorted(groups.items(), key=lambda item: item[0])
    ]
