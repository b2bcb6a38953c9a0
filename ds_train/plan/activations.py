"""What a forward pass leaves for the backward pass, and what comes up beside it there, in bytes.

Layer by layer; what one token takes in a layer is in `layer_activations.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_train.config.run import RunConfig
from ds_train.plan.execution import Unit, backward_order, forward_order
from ds_train.plan.layer_activations import LayerCounter
from ds_train.plan.trainable import Trainable


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch of one rank."""

    all_layers: int
    """What all layers keep for the backward pass."""
    largest_layer: int
    """What one layer keeps: also what recomputing it takes."""
    layer_inputs: int
    """With activation checkpointing: only the input of each layer."""
    outside_layers: int
    """Embeddings, last norm, the output layer's input."""
    in_both: int
    """The input of a layer where it is also the first of what the layer keeps."""
    passing_layer: int
    """What comes up in one layer's backward pass beside what it keeps."""
    passing_norm: int
    """The same for the last norm."""

    def kept(self, *, recompute: bool) -> int:
        """At the end of the forward pass, plus the layer that is recomputed first."""
        return self.at_the_loss(recompute=recompute) + (self.largest_layer if recompute else 0)

    def at_the_loss(self, *, recompute: bool) -> int:
        """At the end of the forward pass."""
        return (self.layer_inputs if recompute else self.all_layers) + self.outside_layers

    def in_a_layer(self, *, recompute: bool) -> int:
        """When the last layer's backward pass begins, and what was kept outside is gone."""
        if recompute:
            return self.layer_inputs + self.largest_layer - self.in_both
        return self.all_layers


def activations(
    trainable: Trainable, config: RunConfig, rows: int, length: int, *, on_cpu: bool = False
) -> Activations:
    """Of `rows` rows of `length` tokens, on each of the ranks that share them.

    Args:
        rows: of one micro-batch; length: tokens of a whole row, virtual ones included.
        on_cpu: torch has no fused attention there with dropout, or with values of other width.
    """
    shape, w = trainable.shape, 4 if config.model.dtype == "fp32" else 2
    recompute = config.model.gradient_checkpointing
    units = forward_order(trainable)
    needed = {id(unit) for unit in backward_order(units, trainable, recompute=recompute)}
    counter = LayerCounter(shape, config, w, length, on_cpu=on_cpu)
    layers: dict[int, list[Unit]] = {}
    outside, passing_norm = 0.0, 0.0
    for unit in units:
        if unit.layer is not None:
            layers.setdefault(unit.layer, []).append(unit)
        elif id(unit) in needed:
            outside += counter.outside(unit)
            passing_norm = max(passing_norm, counter.passing_norm(unit))
    tokens = rows * -(-length // config.engine.sequence_parallel_size)
    seen: dict[object, tuple[float, float]] = {}  # most layers are alike
    of_layers = []
    for some in layers.values():
        likeness = tuple((one.stage, one.trains, id(one) in needed, one.sizes) for one in some)
        if likeness not in seen:
            used = [one for one in some if id(one) in needed]
            kept = tokens * counter.layer(used, some) + w * _merged_experts(some)
            seen[likeness] = kept, tokens * counter.passing(used, some)
        of_layers.append(seen[likeness])
    first = next(iter(layers.values()), [])
    return Activations(
        all_layers=round(sum(kept for kept, _ in of_layers)),
        largest_layer=round(max((kept for kept, _ in of_layers), default=0)),
        layer_inputs=tokens * w * shape.hidden * sum(kept > 0 for kept, _ in of_layers),
        outside_layers=round(tokens * outside),
        in_both=tokens * w * shape.hidden * counter.keeps_its_input(first),
        passing_layer=round(max((passing for _, passing in of_layers), default=0)),
        passing_norm=round(tokens * passing_norm),
    )


def _merged_experts(units: list[Unit]) -> int:
    """Elements of experts that have LoRA: PEFT adds its product to all of them, tokens or not."""
    adapted = {one.owner for one in units if one.trains and one.name not in one.owner}
    found = {
        one.module.name: one.num_elements
        for unit in units
        for one in unit.parameters
        if one.module.kind == "experts" and one.kind == "base"
    }
    return sum(size for name, size in found.items() if name in adapted)
