"""Everything that can be said about a recipe before the launch, without torch and in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_train.config.files import check_files, check_paths
from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError
from ds_train.launch.world import World, find_world
from ds_train.plan.batch import BatchPlan, batch_arithmetic
from ds_train.plan.ds_config import resolve_ds_config
from ds_train.plan.presets import DEFAULT_PRESET
from ds_train.plan.rules import check_rules


@dataclass(frozen=True)
class Plan:
    """A recipe that passed every check, and what follows from it."""

    config: RunConfig
    world: World
    batch: BatchPlan
    ds_config: dict[str, Any]


def validate(
    recipe_path: str | Path, overrides: Sequence[str] = (), launcher_args: Sequence[str] = ()
) -> Plan:
    """Load and check a recipe. Raises ConfigError with every fault; writes nothing."""
    try:
        config = load_recipe(recipe_path, overrides)
    except ConfigError as error:
        paths = check_paths(error.rest) if error.rest is not None else []
        raise ConfigError([*error.faults, *paths]) from None
    faults = check_files(config)
    world, batch, ds_config = None, None, None
    try:
        world = find_world(config.cluster, launcher_args)
    except ConfigError as error:
        faults += error.faults
    faults += check_rules(config, world.world_size if world is not None else None)
    try:
        fewest = config.engine.sequence_parallel_size
        batch = batch_arithmetic(config, world.world_size if world is not None else fewest)
    except ConfigError as error:
        faults += error.faults if world is not None else []
    try:
        # a batch that does not divide is one fault; the engine is checked all the same
        ds_config = resolve_ds_config(config, batch or _stand_in(config))
    except ConfigError as error:
        faults += error.faults
    if faults or world is None or batch is None or ds_config is None:
        raise ConfigError(list(dict.fromkeys(faults)))
    return Plan(config, world, batch, ds_config)


def _stand_in(config: RunConfig) -> BatchPlan:
    train = config.train
    rows = train.global_batch_size or 1
    return BatchPlan(rows, train.per_device_train_batch_size, 1, 1)


def summary(plan: Plan) -> list[str]:
    """Lines for people: what trains on what, for how long, where it goes."""
    config, zero = plan.config, plan.ds_config["zero_optimization"]
    rows = [
        ("model", _describe_model(config)),
        ("trains", describe_adapter(config)),
        ("data", _describe_data(config)),
        ("batch", str(plan.batch)),
        ("length", _describe_length(config)),
        ("engine", f"{_origin(config)} (ZeRO stage {zero['stage']}{_offloads(zero)})"),
        ("output", config.output_dir),
    ]
    if plan.world.note is not None:
        rows.insert(4, ("", plan.world.note))
    return [f"{name:<8}{text}" for name, text in rows]


def _describe_model(config: RunConfig) -> str:
    model = config.model
    parts = [model.name_or_path, model.dtype]
    if model.quantization != "none":
        parts.append(f"base in {model.quantization}")
    if model.init == "random":
        parts.append("random weights")
    if model.gradient_checkpointing:
        parts.append("gradient checkpointing")
    return ", ".join(parts)


def describe_adapter(config: RunConfig) -> str:
    """What trains, in a few words."""
    adapter = config.adapter
    if adapter.path is not None:
        return f"adapter of {adapter.path}"
    if adapter.method == "full":
        return "all parameters"
    if adapter.method == "partial" and adapter.frozen_layers is not None:
        return f"what lies above {adapter.frozen_layers} layers"
    if adapter.method == "partial":
        return f"parameters matching {', '.join(adapter.trainable)}"
    if adapter.method == "lora":
        kind = "DoRA" if adapter.use_dora else "LoRA"
        targets = adapter.target_modules or "all-linear"
        names = targets if isinstance(targets, str) else ", ".join(targets)
        extras = [
            ("rank-stabilised", adapter.use_rslora),
            (f"{adapter.init} start", adapter.init != "default"),
            (f"LoRA+ {adapter.lora_plus_lr_ratio or 1:g}", adapter.lora_plus_lr_ratio is not None),
        ]
        parts = [f"rank {adapter.r}", f"alpha {adapter.alpha:g}"]
        parts += [text for text, holds in extras if holds]
        return f"{kind}, {', '.join(parts)}, on {names}{_whole(config)}"
    if adapter.method == "ia3":
        return f"IA3{_whole(config)}"
    return f"{adapter.method.replace('_', ' ')}, {adapter.num_virtual_tokens} virtual tokens"


def _whole(config: RunConfig) -> str:
    names = config.adapter.modules_to_save
    return f"; whole: {', '.join(names)}" if names else ""


def _describe_data(config: RunConfig) -> str:
    data = config.data
    tasks = config.held_out_tasks
    count = sum(source.shown_name not in tasks for source in data.train)
    rows = "packed into rows" if data.packing else "one per row,"
    if data.validation.sources:
        held = ", own validation sources"
    elif data.validation.fraction:
        held = f", {data.validation.fraction:.3g} of it held out"
    else:
        held = "" if tasks else ", no validation"
    if tasks:
        held += f", held-out tasks {', '.join(tasks)}"
    sources = f"{count} {'source' if count == 1 else 'sources'}"
    if config.fewshot is not None and (subset := config.fewshot.subset) is not None:
        dev = " and as many for dev" if subset.dev else ""
        sources += f", {subset.k:,} examples of each {subset.per}{dev}"
    return f"{sources}, {rows} of up to {data.max_length:,} tokens{held}"


def _describe_length(config: RunConfig) -> str:
    train = config.train
    if train.max_steps is not None:
        return f"{train.max_steps:,} steps"
    if train.max_tokens is not None:
        return f"{train.max_tokens:,} tokens"
    return f"{train.num_train_epochs:g} {'epoch' if train.num_train_epochs == 1 else 'epochs'}"


def _origin(config: RunConfig) -> str:
    engine = config.engine
    name = engine.config or f"preset {engine.preset or DEFAULT_PRESET}"
    return name + (" with overrides" if engine.overrides else "")


def _offloads(zero: dict[str, Any]) -> str:
    parts = []
    for key, what in (("offload_optimizer", "optimizer"), ("offload_param", "parameters")):
        device = zero.get(key, {}).get("device", "none")
        if device != "none":
            parts.append(f", {what} on {device}")
    return "".join(parts)
