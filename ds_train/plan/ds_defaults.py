"""Every value of a DeepSpeed config that neither the preset nor the recipe decides, explicit."""

from __future__ import annotations

from typing import Any

from ds_train.config.run import RunConfig

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


def default_values(config: RunConfig, stage: int, given: dict[str, Any]) -> dict[str, Any]:
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
        # An adapter's gradients are few, so they travel whole; those of a whole model would be
        # twice the traffic.
        "communication_data_type": config.model.dtype if _trains_base(config) else "fp32",
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
    if uses_nvme(given):
        defaults["aio"] = _AIO
    return defaults


def _trains_base(config: RunConfig) -> bool:
    return config.adapter.method in ("full", "partial")


def uses_nvme(given: dict[str, Any]) -> bool:
    """Whether a DeepSpeed config offloads to a disk."""
    zero = given.get("zero_optimization", {})
    blocks = (zero.get("offload_optimizer") or {}, zero.get("offload_param") or {})
    return any(block.get("device") == "nvme" for block in blocks)


def fill_auto(resolved: dict[str, Any], config: RunConfig) -> None:
    """Sizes that follow from what trains."""
    zero, stage = resolved["zero_optimization"], resolved["zero_optimization"]["stage"]
    adapter = not _trains_base(config)
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
    micro-batch in a measurement), so the threshold lies above the largest: r x widest layer. It
    stays below a million, since it holds for the base too: the smallest matrix of Llama-3.2-1B
    has 1,048,576 elements, and must be sharded.
    """
    adapter = config.adapter
    largest = adapter.r * WIDEST_LAYER if adapter.method == "lora" else 0
    return min(max(100_000, largest), 1_000_000)
