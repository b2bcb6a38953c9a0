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
from ds_train.plan.ds_lint import lint_ds_config
from ds_train.plan.ds_recipe import contradictions
from ds_train.plan.presets import DEFAULT_PRESET, read_ds_config, read_preset

NEVER = 2**31 - 1
"""steps_per_print that is not reached: ds-train prints its own lines."""

WIDEST_LAYER = 65_536
"""No linear layer of today's models is wider (Llama 3.1 405B: 53,248)."""

_BF16 = {"bf16_master_weights_and_grads": False, "bf16_optimizer_states": False}
_FP16 = {
    "auto_cast": False,
    "loss_scale": 0,
    "initial_scale_power": 16,
    "loss_scale_window": 1000,
    "hysteresis": 2,
    "consecutive_hysteresis": False,
    "min_loss_scale": 1,
    "fp16_master_weights_and_grads": False,
}
_AIO = {
    "block_size": 1_048_576,
    "queue_depth": 8,
    "intra_op_parallelism": 1,
    "single_submit": False,
    "overlap_events": True,
    "use_gds": False,
}
_STAGE3: dict[str, Any] = {
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": "auto",
    "stage3_model_persistence_threshold": 2**63 - 1,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_gather_16bit_weights_on_model_save": False,
    "stage3_module_granularity_threshold": 0,
    "stage3_use_all_reduce_for_fetch_params": False,
    "stage3_allgather_sequential": False,
    "sub_group_size": 1_000_000_000,
    "zero_hpz_partition_size": 1,
    "zero_quantized_weights": False,
    "zero_quantized_nontrainable_weights": False,
    "zero_quantized_gradients": False,
    "memory_efficient_linear": True,
    "override_module_apply": True,
    "pipeline_loading_checkpoint": False,
    "log_trace_cache_warnings": False,
    "enable_sanity_checks": False,
}
_STAGE12: dict[str, Any] = {
    "use_multi_rank_bucket_allreduce": True,
    "allgather_partitions": True,
    "allgather_bucket_size": "auto",
    "compute_grad_norm": True,
    "round_robin_gradients": False,
    "parameter_alignment": False,
    "ignore_unused_parameters": True,
}
_OFFLOAD_OPTIMIZER = {
    "device": "none",
    "buffer_count": 4,
    "pin_memory": True,
    "pipeline_read": False,
    "pipeline_write": False,
    "fast_init": False,
    "ratio": 1.0,
    "super_offload": False,
}
_OFFLOAD_PARAM = {
    "device": "none",
    "buffer_count": 5,
    "buffer_size": 100_000_000,
    "max_in_cpu": 1_000_000_000,
    "pin_memory": True,
}


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
    resolved = deep_merge(_defaults(config, stage, given), given)
    _fill_auto(resolved, config)
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
    """The zero_optimization block of preset (or own file) and overrides, before it is resolved.

    Empty when the preset, the file or the block can't be read; `resolve_ds_config` says so.
    """
    try:
        raw, _ = _origin(config)
    except ConfigError:
        return {}
    block = deep_merge(raw, config.engine.overrides).get("zero_optimization")
    if not isinstance(block, dict) or lint_ds_config({"zero_optimization": block}, ""):
        return {}
    return _without_auto(block)


def use_coalesced_reduction(config: RunConfig, ds_config: dict[str, Any]) -> bool:
    """Whether gradients are reduced once per step through engine.coalesce_grad_reduction.

    Costs the memory of the trainable parameters' whole gradients: nothing for an adapter, too
    much for a whole model at stages 2 and 3, which exist to shard them. At stage 1 in bf16
    DeepSpeed uses its BF16_Optimizer, which has no such path and reduces once per step anyway.
    """
    zero = ds_config["zero_optimization"]
    if zero["stage"] == 0 or (zero["stage"] == 1 and uses_bf16_optimizer(ds_config)):
        return False
    return zero["stage"] == 1 or config.adapter.method not in ("full", "partial")


def uses_bf16_optimizer(ds_config: dict[str, Any]) -> bool:
    """Whether DeepSpeed takes BF16_Optimizer: stage 1, bf16, fp32 accumulation, no offload."""
    zero = ds_config["zero_optimization"]
    return bool(
        zero["stage"] == 1
        and ds_config["bf16"]["enabled"]
        and ds_config["data_types"]["grad_accum_dtype"] == "fp32"
        and zero.get("offload_optimizer", {}).get("device", "none") == "none"
    )


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


def _defaults(config: RunConfig, stage: int, given: dict[str, Any]) -> dict[str, Any]:
    """Every value that neither the preset nor the recipe decides."""
    zero: dict[str, Any] = {
        "stage": 0,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": "auto",
        "overlap_comm": "auto",
        "load_from_fp32_weights": True,
    }
    zero |= _STAGE3 if stage == 3 else _STAGE12
    for key, block in (
        ("offload_optimizer", _OFFLOAD_OPTIMIZER),
        ("offload_param", _OFFLOAD_PARAM),
    ):
        if given.get("zero_optimization", {}).get(key) is not None:
            zero[key] = block
    defaults: dict[str, Any] = {
        "zero_optimization": zero,
        "bf16": _BF16,
        "fp16": _FP16,
        "gradient_allreduce_op": "mean",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": config.model.dtype,
        "data_types": {"grad_accum_dtype": config.model.dtype if stage == 0 else "fp32"},
        "checkpoint": {
            "tag_validation": "Fail",
            "load_universal": False,
            "use_node_local_storage": False,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": NEVER,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
        "disable_python_gc": False,
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
    }
    if _uses_nvme(given):
        defaults["aio"] = _AIO
    return defaults


def _uses_nvme(given: dict[str, Any]) -> bool:
    zero = given.get("zero_optimization", {})
    blocks = (zero.get("offload_optimizer", {}), zero.get("offload_param", {}))
    return any(block.get("device") == "nvme" for block in blocks)


def _fill_auto(resolved: dict[str, Any], config: RunConfig) -> None:
    """Sizes that follow from what trains."""
    zero, stage = resolved["zero_optimization"], resolved["zero_optimization"]["stage"]
    adapter = config.adapter.method not in ("full", "partial")
    # Buffers have this many elements whatever trains: 20 MB in bf16 are plenty for an adapter,
    # 100 MB keep a link busy for a whole model (PyTorch's DDP takes 25 MB).
    values = {
        "reduce_bucket_size": 10_000_000 if adapter else 50_000_000,
        "allgather_bucket_size": 50_000_000 if adapter else 200_000_000,
        # Overlap doubles the buffers and needs a backward that reduces as it goes.
        "overlap_comm": stage == 3 or (stage == 2 and not adapter),
        "stage3_param_persistence_threshold": _persistence_threshold(config),
    }
    for key, value in values.items():
        if zero.get(key) == "auto":
            zero[key] = value


def _persistence_threshold(config: RunConfig) -> int:
    """Elements up to which a parameter stays whole on every rank.

    Sharding adapters costs an all-gather per small matrix and layer (185 against 78 per
    micro-batch in a measurement), so the threshold lies above the largest: r x widest layer.
    """
    adapter = config.adapter
    largest = adapter.r * WIDEST_LAYER if adapter.method == "lora" else 0
    return max(100_000, largest)


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
