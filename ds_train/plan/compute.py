"""Operations of a step, and its time at a stated share of the peak.

A linear layer of P weights takes 2 P operations a token forward, 2 P for the gradient of its
input, and 2 P for that of its weight where it trains (Kaplan et al., arXiv 2001.08361, section
2.1). Attention adds 4 t q a token and layer forward for a row of t tokens and q = heads x head
size, counted in full as dense attention with a mask computes it, and twice that backward (Chowdhery
et al., PaLM, appendix B). Recomputing activations repeats the forward pass of the layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_train.plan.execution import Unit, backward_order, forward_order
from ds_train.plan.setting import Setting
from ds_train.plan.trainable import Parameter


@dataclass(frozen=True)
class Compute:
    """Of one optimizer step, all ranks together."""

    flops: float
    tokens: int

    def seconds(self, setting: Setting, utilisation: float) -> float | None:
        """None where the device's peak is not known."""
        peak = setting.cluster.flops_32 if setting.width == 4 else setting.cluster.flops_16
        if peak is None:
            return None
        return self.flops / (setting.world_size * peak * utilisation)


def compute_of(setting: Setting) -> Compute:
    """Operations of a step in which no row is shorter than data.max_length."""
    trainable, shape = setting.trainable, setting.trainable.shape
    recompute = setting.config.model.gradient_checkpointing
    units = forward_order(trainable)
    backward = {id(one) for one in backward_order(units, trainable, recompute=recompute)}
    per_token = 0.0
    for unit in units:
        again = 2 if recompute and unit.layer is not None else 1
        for one in unit.parameters:
            if not _multiplies(one, unit):
                continue
            elements = one.num_elements
            if one.module.kind == "experts" and shape.num_experts:
                elements = elements * shape.experts_per_token // shape.num_experts
            per_token += 2 * elements * (again + (id(unit) in backward) + one.trains)
    layers = {unit.layer for unit in units if unit.layer is not None}
    needed = {unit.layer for unit in units if id(unit) in backward and unit.layer is not None}
    attention = 2 * setting.length * sum(shape.attention_widths)
    per_token += attention * (len(layers) * (2 if recompute else 1) + 2 * len(needed))
    tokens = setting.batch.global_batch_size * setting.length
    return Compute(per_token * tokens, tokens)


def _multiplies(one: Parameter, unit: Unit) -> bool:
    """Whether a token is multiplied with it: neither vectors nor a look-up of embeddings."""
    is_lookup = one.module.kind == "embedding" and unit.owner == one.module.name
    return len(one.shape) >= 2 and not is_lookup
