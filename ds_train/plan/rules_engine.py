"""Combinations of ZeRO settings and the recipe that can't work; see rules.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ds_train.config.run import RunConfig
from ds_train.plan.ds_config import given_block, zero_settings


def zero_rules(config: RunConfig, world_size: int | None) -> Iterator[str]:
    """Faults of sharding; `world_size` is None when unknown."""
    zero = zero_settings(config)
    stage = zero.get("stage", 0)
    hpz = zero.get("zero_hpz_partition_size", 1)
    if stage == 3 and config.adapter.init == "pissa":
        yield (
            "adapter.init = pissa with ZeRO stage 3: it takes the principal components of whole "
            "weights, which are sharded there; set engine.preset: zero2, or adapter.init: default."
        )
    if hpz > 1 and stage != 3:
        yield (
            f"zero_optimization.zero_hpz_partition_size = {hpz}: only stage 3 shards weights; "
            f"set engine.preset: zeropp, or remove it."
        )
    elif hpz > 1 and world_size is not None and world_size % hpz:
        yield (
            f"zero_optimization.zero_hpz_partition_size = {hpz} must divide the {world_size} "
            f"processes; set engine.overrides.zero_optimization.zero_hpz_partition_size to the "
            f"number of GPUs of a node."
        )
    yield from _modules_at_once(config, zero)
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if zero.get(key) and config.model.dtype == "bf16":
            yield (
                f"zero_optimization.{key} = true with model.dtype = bf16: DeepSpeed 0.19 crashes, "
                f"its quantizer knows fp16 only; set model.dtype: fp16, or remove it."
            )
        elif zero.get(key) and stage != 3:
            yield f"zero_optimization.{key} = true: only stage 3 has it; remove it."


def _modules_at_once(config: RunConfig, zero: dict[str, Any]) -> Iterator[str]:
    """Tried on DeepSpeed 0.19.8: "1 != 512 Cannot reduce scatter gradients"."""
    threshold = zero.get("stage3_module_granularity_threshold", 0)
    if threshold and config.adapter.method != "full":
        yield (
            f"zero_optimization.stage3_module_granularity_threshold = {threshold} with "
            f"adapter.method = {config.adapter.method}: DeepSpeed 0.19 fails in the first backward "
            "pass where a module gathered at once has frozen weights; remove it."
        )


def precision_rules(config: RunConfig) -> Iterator[str]:
    """Faults of 16-bit masters and optimizer states: DeepSpeed tells some of them by an assertion
    after the launch, and others not at all."""
    bf16, zero = given_block(config, "bf16"), zero_settings(config)
    optimizer = (zero.get("offload_optimizer") or {}).get("device", "none")
    masters, states = (
        bool(bf16.get(key)) for key in ("bf16_master_weights_and_grads", "bf16_optimizer_states")
    )
    if states and not masters:
        yield (
            "bf16.bf16_optimizer_states = true: needs bf16.bf16_master_weights_and_grads: true; "
            "add it, or remove both."
        )
    elif states and config.model.dtype != "bf16":
        yield (
            f"bf16.bf16_optimizer_states = true with model.dtype = {config.model.dtype}: has no "
            f"effect there; set model.dtype: bf16, or remove it."
        )
    elif states and zero.get("stage", 0) < 2:
        yield (
            "bf16.bf16_optimizer_states = true: below ZeRO stage 2 DeepSpeed 0.19 keeps fp32 "
            "without a word; set engine.preset: zero2_bf16_states, or remove it."
        )
    elif states and optimizer != "none":
        yield (
            f"bf16.bf16_optimizer_states = true with the optimizer on the {optimizer}: its states "
            f"are fp32 there; take offload_optimizer away, or remove it."
        )
    elif masters and not states and optimizer != "cpu":
        yield (
            "bf16.bf16_master_weights_and_grads = true: DeepSpeed 0.19 has it only with "
            "bf16_optimizer_states, or with the optimizer on the CPU; set engine.preset: "
            "zero2_bf16_states, or remove it."
        )


def offload_rules(config: RunConfig) -> Iterator[str]:
    """Faults of offloading to CPU memory or NVMe."""
    zero = zero_settings(config)
    stage = zero.get("stage", 0)
    for key, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        block = zero.get(key) or {}
        device = block.get("device", "none")
        name = f"zero_optimization.{key}"
        if device == "none":
            continue
        if stage < lowest:
            yield (
                f"{name}.device = {device}: needs ZeRO stage {lowest} or more, this is stage "
                f"{stage}; set engine.preset: zero{lowest}, or remove it."
            )
        elif device == "nvme" and stage < 3:
            yield (
                f"{name}.device = nvme: at stage {stage} DeepSpeed keeps it in CPU memory without "
                f"a word; set device: cpu, or engine.preset: zero3_offload_nvme."
            )
        if device == "nvme" and not block.get("nvme_path"):
            yield f"{name}.nvme_path is missing: name a folder on the NVMe disk."
        if block.get("super_offload"):
            yield (
                f"{name}.super_offload = true: keeps Adam's moments in a process of its own, out "
                "of which DeepSpeed 0.19 has no way, so the run could not be resumed; set "
                "engine.preset: zero3_offload_cpu."
            )
        if block.get("ratio", 1.0) < 1.0 and stage != 3:
            yield f"{name}.ratio = {block['ratio']}: only stage 3 offloads in part; remove it."
