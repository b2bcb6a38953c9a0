"""Which parameters a recipe adds and which train, tensor by tensor, as PEFT would make them.

Equal to what `model/adapter.py` makes (`tests/plan/test_trainable.py` builds both).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ds_train.config.adapter import VIRTUAL_TOKEN_METHODS, AdapterConfig
from ds_train.errors import ConfigError
from ds_train.plan.adapter_files import stored_adapter
from ds_train.plan.expert_targets import expert_ranks, expert_targets, without_experts
from ds_train.plan.ia3_names import SECOND_LAYERS, attention_names, ends, present
from ds_train.plan.partial import Trains, partial_rule
from ds_train.plan.shapes import ModelShape, Module, Shape


@dataclass(frozen=True)
class Parameter:
    """One tensor of the model in training."""

    name: str
    shape: Shape
    trains: bool
    module: Module
    """Of the base model, that it belongs to or adapts."""
    kind: str = "base"
    """base, adapter, or copy (of `modules_to_save`)."""

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def is_vector(self) -> bool:
        """Without weight decay, and in the optimizer group of the vectors."""
        return len(self.shape) < 2


@dataclass(frozen=True, eq=False)
class Trainable:
    """The model with what trains; equal to itself only, so that what follows from it is kept."""

    shape: ModelShape
    parameters: tuple[Parameter, ...]
    """In the order in which a forward pass comes to them."""

    @property
    def num_elements(self) -> int:
        """All parameters, those of the adapter included."""
        return sum(one.num_elements for one in self.parameters)

    @property
    def num_trainable(self) -> int:
        """Those that train."""
        return sum(one.num_elements for one in self.parameters if one.trains)

    @property
    def trained(self) -> list[Parameter]:
        """Tensors that train."""
        return [one for one in self.parameters if one.trains]

    @property
    def trains_output(self) -> bool:
        """Whether the output layer's weight (its trained copy, where there is one) trains."""
        output = self.shape.output
        names = {output.name} if output is not None else set()
        if self.shape.tied:
            names.add(self.shape.embeddings.name)
        return any(one.module.name in names and one.kind != "adapter" for one in self.trained)


def choose(shape: ModelShape, adapter: AdapterConfig) -> Trainable:
    """What trains of a model, as `model/adapter.py` chooses it.

    Raises ConfigError when the recipe names modules or parameters that are not there.
    """
    if adapter.path is not None:
        return Trainable(shape, tuple(_stored(shape, adapter.path)))
    if adapter.method == "full":
        return Trainable(shape, tuple(_base(shape, lambda name, module: True)))
    if adapter.method == "partial":
        return Trainable(shape, tuple(_base(shape, partial_rule(shape, adapter))))
    if adapter.method in VIRTUAL_TOKEN_METHODS:
        return Trainable(shape, tuple(_virtual_tokens(shape, adapter)))
    return Trainable(shape, tuple(_adapted(shape, adapter)))


def _base(shape: ModelShape, trains: Trains) -> Iterator[Parameter]:
    for module in shape.own_modules:
        for name, sizes in module.tensors:
            yield Parameter(name, sizes, trains(name, module), module)


def _virtual_tokens(shape: ModelShape, adapter: AdapterConfig) -> Iterator[Parameter]:
    width = shape.hidden
    if adapter.method == "prefix_tuning":
        width = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    sizes = (adapter.num_virtual_tokens, width)
    owner = replace(shape.embeddings, name="prompt_encoder.default.embedding")
    yield Parameter(f"{owner.name}.weight", sizes, True, owner, "adapter")
    yield from _base(shape, lambda name, module: False)


def _adapted(shape: ModelShape, adapter: AdapterConfig) -> Iterator[Parameter]:
    """LoRA and IA3: the frozen base, each target followed by its adapter."""
    targets = _targets(shape, adapter)
    saved = [one for one in shape.modules if _is_saved(one.name, adapter)]
    names = [module.name for module in shape.own_modules]
    ranks = expert_ranks(shape, adapter)
    for module in shape.own_modules:
        for name, sizes in module.tensors:
            yield Parameter(name, sizes, False, module)
        if module.name in ranks:
            yield from _lora_of_weight(module, ranks)
        elif module in saved:
            yield from _copy(module)
        elif module.name in targets:
            yield from _adapter_of(module, adapter, targets[module.name])
    for module in shape.modules:  # the tied output layer has no weight of its own
        if module.name in names:
            continue
        if module in saved:
            yield from _copy(module)
        elif module.name in targets:
            yield from _adapter_of(module, adapter, targets[module.name])


def _copy(module: Module) -> Iterator[Parameter]:
    for name, sizes in module.tensors:
        inside = name.removeprefix(module.name)
        yield Parameter(
            f"{module.name}.modules_to_save.default{inside}", sizes, True, module, "copy"
        )


def _is_saved(name: str, adapter: AdapterConfig) -> bool:
    """PEFT copies the modules whose names end so, with or without a dot before it."""
    return any(name.endswith(one) for one in adapter.modules_to_save)


def _targets(shape: ModelShape, adapter: AdapterConfig) -> dict[str, bool]:
    """Name of each adapted module -> whether IA3 scales its input."""
    linear = [one.name for one in shape.modules if one.is_linear]
    wanted, second = adapter.target_modules, adapter.feedforward_modules
    if wanted is None and adapter.method == "ia3":
        found = present(SECOND_LAYERS, linear)
        wanted, second = attention_names(linear) + found, second or found
    elif second is None:
        second = present(SECOND_LAYERS, linear)
    candidates = [one.name for one in shape.modules if one.is_linear or one.kind == "embedding"]
    wanted = wanted or "all-linear"
    if adapter.method == "lora":
        wanted = without_experts(shape, wanted)
    chosen = [
        name
        for name in candidates
        if _matches(name, wanted, shape, linear)
        and not _excluded(name, adapter.exclude_modules)
        and not _is_saved(name, adapter)
    ]
    if not chosen and not expert_targets(shape, adapter):
        shown = sorted({name.rsplit(".", 1)[-1] for name in linear} - {"lm_head"})
        raise ConfigError(
            f"adapter.target_modules = {adapter.target_modules!r}: no module has such a name; the "
            f"model's linear layers are {', '.join(shown)}."
        )
    return {name: bool(present(tuple(second), [name])) for name in chosen}


def _matches(name: str, wanted: str | list[str], shape: ModelShape, linear: list[str]) -> bool:
    """As PEFT decides: all linear layers but the output, one regular expression, or endings."""
    if isinstance(wanted, str) and wanted.lower() == "all-linear":
        output = shape.output
        return name in linear and (output is None or name != output.name)
    return _named(name, wanted)


def _excluded(name: str, wanted: str | list[str] | None) -> bool:
    return wanted is not None and _named(name, wanted)


def _named(name: str, wanted: str | list[str]) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(ends(name, one) for one in wanted)


def _adapter_of(module: Module, adapter: AdapterConfig, scales_input: bool) -> Iterator[Parameter]:
    def made(end: str, *sizes: int) -> Parameter:
        return Parameter(f"{module.name}.{end}", sizes, True, module, "adapter")

    if adapter.method == "ia3":
        width = module.in_features if scales_input else module.out_features
        yield made("ia3_l.default", *((1, width) if scales_input else (width, 1)))
        return
    if module.kind == "embedding":
        vocab, hidden = module.shape
        yield made("lora_embedding_A.default", adapter.r, vocab)
        yield made("lora_embedding_B.default", hidden, adapter.r)
        if adapter.use_dora:
            yield made("lora_magnitude_vector.default.weight", hidden)
        return
    yield made("lora_A.default.weight", adapter.r, module.in_features)
    yield made("lora_B.default.weight", module.out_features, adapter.r)
    if adapter.use_dora:
        yield made("lora_magnitude_vector.default.weight", module.out_features)


def _lora_of_weight(module: Module, ranks: dict[str, int]) -> Iterator[Parameter]:
    """LoRA of a router [e, in] or of all experts [e, out, in], which have a rank each."""
    rank = ranks[module.name]
    sizes = module.shape if len(module.shape) == 3 else (1, *module.shape)
    experts, width, inputs = sizes
    name = module.name
    if module.kind == "experts":  # one module holds both tensors, so PEFT may wrap it twice
        owner = name.rsplit(".", 1)[0]
        is_inner = name.endswith(".gate_up_proj") and f"{owner}.down_proj" in ranks
        name = f"{owner}.base_layer" if is_inner else owner
    for end, shape in (("A", (rank * experts, inputs)), ("B", (width, rank * experts))):
        yield Parameter(f"{name}.lora_{end}.default.weight", shape, True, module, "adapter")


def _stored(shape: ModelShape, path: str) -> Iterator[Parameter]:
    """The frozen base, and the tensors of an adapter folder beside their modules."""
    found = stored_adapter(path)
    for module in shape.own_modules:
        for name, sizes in module.tensors:
            yield Parameter(name, sizes, False, module)
    by_length = sorted(shape.modules, key=lambda one: -len(one.name))
    for name, sizes in found.items():
        owner = next((one for one in by_length if name.startswith(f"{one.name}.")), None)
        plain = owner is not None and name in [one for one, _ in owner.tensors]
        yield Parameter(
            name, sizes, True, owner or shape.embeddings, "copy" if plain else "adapter"
        )
