"""In which order a forward pass comes to the modules, and which of them a backward pass needs.

Within a layer: norm, queries with keys and values, their output, norm, first and second
feed-forward layers, norms. A frozen module is needed backward only where its input has a gradient:
below the first trained module there is none (unless activations are recomputed, for which the
embeddings' output is made to have one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ds_train.plan.ia3_names import SECOND_LAYERS, present
from ds_train.plan.trainable import Parameter, Trainable

_FIRST_NORMS = ("input_layernorm", "ln_1")
_LATE_NORMS = ("post_feedforward_layernorm",)
_ATTENTION_OUTPUTS = ("o_proj", "attention.dense", "self_attn.dense", "attn.c_proj")


@dataclass(frozen=True)
class Unit:
    """A module that owns parameters: an adapter's matrices are modules of their own."""

    name: str
    owner: str
    """The base model's module that it is, or adapts."""
    layer: int | None
    stage: int
    """Place within a layer; modules of one stage have the same input."""
    parameters: tuple[Parameter, ...]

    @cached_property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of its parameters."""
        return tuple(one.shape for one in self.parameters)

    @cached_property
    def trains(self) -> bool:
        """Whether one of its parameters does."""
        return any(one.trains for one in self.parameters)


@lru_cache(maxsize=8)
def forward_order(trainable: Trainable) -> tuple[Unit, ...]:
    """Modules as a forward pass comes to them; the tied output layer is the embeddings' again."""
    found: dict[str, list[Parameter]] = {}
    for one in trainable.parameters:
        found.setdefault(_owner_of(one), []).append(one)
    shape = trainable.shape
    units = []
    for name, parameters in found.items():
        module = parameters[0].module
        units.append(Unit(name, module.name, module.layer, _stage(module.name), tuple(parameters)))
    output = shape.output
    before = [
        one for one in units if one.layer is None and one.parameters[0].module.kind == "embedding"
    ]
    layers = sorted((one for one in units if one.layer is not None), key=_place)
    after = [one for one in units if one not in before and one.layer is None]
    after.sort(key=lambda one: output is not None and one.owner == output.name)
    if shape.tied:
        embeddings = next(one for one in before if one.owner == shape.embeddings.name)
        name = output.name if output is not None else "lm_head"
        after.append(Unit(name, name, None, 0, embeddings.parameters))
    return (*before, *layers, *after)


def backward_order(units: Sequence[Unit], trainable: Trainable, *, recompute: bool) -> list[Unit]:
    """Modules that a backward pass needs, last first."""
    has_gradient = recompute or trainable.parameters[0].module.name.startswith("prompt_encoder")
    needed, joins, place = [], has_gradient, None
    for unit in units:
        if (unit.layer, unit.stage) != place:
            has_gradient, place = joins, (unit.layer, unit.stage)
        if unit.trains or has_gradient:
            needed.append(unit)
            joins = True
    return needed[::-1]


def attention_passes(trainable: Trainable, *, recompute: bool) -> int:
    """How often attention is computed for a micro-batch, all layers together.

    Forward, backward where its input has a gradient, and once more where it is recomputed.
    """
    units = forward_order(trainable)
    needed = {id(one) for one in backward_order(units, trainable, recompute=recompute)}
    # from the first module that needs its gradient on, every output has one
    begins = min((i for i, one in enumerate(units) if id(one) in needed), default=len(units))
    outputs: dict[int, int] = {}
    for index, one in enumerate(units):
        if one.layer is not None and one.stage >= 2:
            outputs.setdefault(one.layer, index)  # the module right after attention
    backward = sum(begins < index for index in outputs.values())
    return len(outputs) * (2 if recompute else 1) + backward


def _place(unit: Unit) -> tuple[int, int]:
    return unit.layer or 0, unit.stage


def _owner_of(parameter: Parameter) -> str:
    """Name of the module that owns it."""
    name = parameter.name
    if parameter.module.kind == "experts" and parameter.kind == "base":
        return name.rsplit(".", 1)[0]
    for end in (".weight", ".bias"):
        name = name.removesuffix(end)
    return name


def _stage(name: str) -> int:
    if any(name.endswith(one) for one in _FIRST_NORMS):
        return 0
    if any(name.endswith(one) for one in _LATE_NORMS):
        return 6
    if "attn" in name or "attention" in name.rsplit(".", 1)[0]:
        return 2 if any(name.endswith(one) for one in _ATTENTION_OUTPUTS) else 1
    if name.endswith(("layernorm", "ln_2")):
        return 3
    return 5 if present(SECOND_LAYERS, [name]) or "experts" in name else 4
