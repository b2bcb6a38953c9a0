"""The whole DeepSpeed config of a run, every value explicit.

Preset (or the user's own file) <- engine.overrides <- what the recipe decides. DeepSpeed's own
defaults are never relied on: a `gradient_clipping` that is left out means 1.0, an unknown key is
ignored in silence, an "auto" at the top level stays the word "auto".
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError
from ds_train.plan.batch import BatchPlan
from ds_train.plan.ds_defaults import default_values, fill_auto
from ds_train.plan.ds_lint import lint_ds_config
from ds_train.plan.ds_recipe import contradictions
from ds_train.plan.presets import DEFAULT_PRESET, read_ds_config, read_preset


def resolve_ds_config(config: RunConfig, batch: BatchPlan) -> dict[str, Any]:
    """The dict that DeepSpeed gets. Raises ConfigError with every fault of names and values."""
    engine = config.engine
    raw, where = _origin(config)
    faults = lint_ds_config(raw, where) + contradictions(raw, where, config, batch)
    faults += lint_ds_config(engine.overrides, "engine.overrides")
    faults += contradictions(engine.overrides, "engine.overrides", config, batch)
    if faults:
        raise ConfigError(faults)
    given = _without_auto(deep_merge(raw, engine.overrides))
    stage = int(given.get("zero_optimization", {}).get("stage", 0))
    resolved = deep_merge(default_values(config, stage, given), given)
    fill_auto(resolved, config)
    resolved = deep_merge(resolved, _recipe_decides(config, batch))
    if stage == 0 and config.model.dtype == "fp32":
        # DeepSpeed keeps no gradient norm here, so our engine measures it and clips.
        resolved["gradient_clipping"] = 0.0
    for key in ("optimizer", "scheduler"):
        resolved.pop(key, None)
    resolved["managed_gradient_accumulation"] = use_coalesced_reduction(config, resolved)
    if faults := _impossible(resolved):
        raise ConfigError(faults)
    return _whole_numbers(resolved)


def zero_settings(config: RunConfig) -> dict[str, Any]:
    """The zero_optimization block of preset (or own file) and overrides, before it is resolved."""
    return given_block(config, "zero_optimization")


def given_block(config: RunConfig, name: str) -> dict[str, Any]:
    """A block of preset (or own file) and overrides, before it is resolved.

    Empty when the preset, the file or the block can't be read; `resolve_ds_config` says so.
    """
    try:
        raw, _ = _origin(config)
    except ConfigError:
        return {}
    block = deep_merge(raw, config.engine.overrides).get(name)
    if not isinstance(block, dict) or lint_ds_config({name: block}, ""):
        return {}
    return _without_auto(block)


def use_coalesced_reduction(config: RunConfig, ds_config: dict[str, Any]) -> bool:
    """Whether gradients are reduced once per step through engine.coalesce_grad_reduction.

    Costs the memory of the trainable parameters' whole gradients: nothing for an adapter, too
    much for a whole model at stages 2 and 3, which exist to shard them. Only in fp32: DeepSpeed
    holds what waits for the reduction in the model's dtype, and sixteen micro-batches added up in
    bf16 moved the gradient norm of a LoRA run by 1.5e-4 (measured; by 1e-5 when added in fp32).
    """
    stage = ds_config["zero_optimization"]["stage"]
    if stage == 0 or config.model.dtype != "fp32":
        return False
    return stage == 1 or config.adapter.method not in ("full", "partial")


def deep_merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A new dict: `over` laid over `base`, block by block."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = deep_merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _origin(config: RunConfig) -> tuple[dict[str, Any], str]:
    """Preset or own file, and its name in messages."""
    engine = config.engine
    if engine.config is not None:
        path = Path(engine.config)
        return read_ds_config(path, "engine.config"), f"engine.config ({path.name})"
    name = engine.preset or DEFAULT_PRESET
    return read_preset(name), f"preset {name}"


def _without_auto(block: dict[str, Any]) -> dict[str, Any]:
    """Leave out "auto" and null, so that our own values take their place."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in block.items()
        if value != "auto" and value is not None
    }


def _recipe_decides(config: RunConfig, batch: BatchPlan) -> dict[str, Any]:
    """What no preset may change, because the training step relies on it."""
    return {
        "train_batch_size": batch.micro_batch_size * batch.world_size,
        "train_micro_batch_size_per_gpu": batch.micro_batch_size,
        # the step accumulates itself, so that every supervised token weighs the same
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.train.max_grad_norm,
        "bf16": {
            "enabled": config.model.dtype == "bf16",
            # our own guard stops the run; DeepSpeed's would skip the step in silence
            "check_grad_overflow": False,
        },
        "fp16": {"enabled": config.model.dtype == "fp16"},
    }


def _impossible(resolved: dict[str, Any]) -> list[str]:
    """Combinations inside the DeepSpeed config that it refuses late or ignores."""
    zero, faults = resolved["zero_optimization"], []
    stage = zero["stage"]
    if zero["overlap_comm"] and stage < 2 and not resolved["managed_gradient_accumulation"]:
        faults.append(
            f"zero_optimization.overlap_comm = true: at stage {stage} gradients are reduced once, "
            f"after the last backward, so there is nothing to overlap; remove it."
        )
    if stage == 0 and resolved["data_types"]["grad_accum_dtype"] != _dtype(resolved):
        faults.append(
            "data_types.grad_accum_dtype: stage 0 accumulates in model.dtype; use stage 1 or more."
        )
    if "comms_logger" in resolved and resolved["comms_logger"].get("enabled") is False:
        faults.append(
            "comms_logger.enabled = false: DeepSpeed turns the logger on when the block is there, "
            "whatever it says; remove the block."
        )
    if not zero.get("compute_grad_norm", True):
        faults.append(
            "zero_optimization.compute_grad_norm = false: the gradient norm is needed to clip and "
            "to notice a run that diverges; remove it."
        )
    return faults


def _dtype(resolved: dict[str, Any]) -> str:
    return next((name for name in ("bf16", "fp16") if resolved[name]["enabled"]), "fp32")


def _whole_numbers(block: dict[str, Any]) -> dict[str, Any]:
    """`1e6` means 1000000 where DeepSpeed counts; leave fractions and real numbers alone."""
    real = {"gradient_clipping", "gradient_predivide_factor", "ratio", "cpuadam_cores_perc"}
    return {
        key: _whole_numbers(value)
        if isinstance(value, dict)
        else int(value)
        if isinstance(value, float) and value == int(value) and key not in real
        else value
        for key, value in block.items()
    }
