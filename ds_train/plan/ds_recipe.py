"""Where a DeepSpeed config says something else than the recipe: "the recipe says ..."."""

from __future__ import annotations

from typing import Any

from ds_train.config.run import RunConfig
from ds_train.plan.batch import BatchPlan

_SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}


def contradictions(
    raw: dict[str, Any], where: str, config: RunConfig, batch: BatchPlan
) -> list[str]:
    """Values of `raw` that the recipe decides and that differ from it; "auto" never does."""
    if not isinstance(raw, dict):
        return []
    faults = []
    for key, value, field in _decided(config, batch):
        given = _get(raw, key)
        if given not in (None, "auto") and given != value:
            shown = str(value).lower() if isinstance(value, bool) else f"{value}"
            faults.append(
                f"{where}.{key} = {str(given).lower()}: the recipe says {shown} ({field}); "
                f'remove it here, or write "auto".'
            )
    return faults + _optimizer_faults(raw, where, config) + _scheduler_faults(raw, where, config)


def _decided(config: RunConfig, batch: BatchPlan) -> list[tuple[str, Any, str]]:
    dtype = config.model.dtype
    return [
        ("train_batch_size", batch.global_batch_size, "train.global_batch_size"),
        (
            "train_micro_batch_size_per_gpu",
            batch.micro_batch_size,
            "train.per_device_train_batch_size",
        ),
        (
            "gradient_accumulation_steps",
            batch.accumulation_steps,
            "train.global_batch_size or train.gradient_accumulation_steps",
        ),
        ("gradient_clipping", config.train.max_grad_norm, "train.max_grad_norm"),
        ("bf16.enabled", dtype == "bf16", f"model.dtype = {dtype}"),
        ("fp16.enabled", dtype == "fp16", f"model.dtype = {dtype}"),
        ("bf16.check_grad_overflow", False, "a run that diverges is stopped, no step is skipped"),
        ("gradient_allreduce_op", "mean", "ds-train scales the loss for it"),
        ("disable_allgather", False, "every rank needs the updated weights"),
    ]


def _get(raw: dict[str, Any], path: str) -> Any:
    here: Any = raw
    for part in path.split("."):
        here = here.get(part) if isinstance(here, dict) else None
    return here


def _optimizer_faults(raw: dict[str, Any], where: str, config: RunConfig) -> list[str]:
    """An AdamW block as in Hugging Face examples is fine when it says what the recipe says."""
    block = raw.get("optimizer")
    if not isinstance(block, dict):
        return []
    train, kind = config.train, str(block.get("type", "auto"))
    if kind != "auto" and kind.lower().removeprefix("torch_") not in ("adam", train.optim):
        return [
            f"{where}.optimizer.type = {kind}: the recipe says {train.optim} (train.optim); "
            f"remove the block."
        ]
    recipe = {
        "lr": (train.learning_rate, "train.learning_rate"),
        "betas": ([train.adam_beta1, train.adam_beta2], "train.adam_beta1, train.adam_beta2"),
        "eps": (train.adam_epsilon, "train.adam_epsilon"),
        "weight_decay": (train.weight_decay, "train.weight_decay"),
    }
    faults = []
    for key, given in (block.get("params") or {}).items():
        value, field = recipe.get(key, (None, "train"))
        if given in ("auto", value) or key in ("torch_adam", "adam_w_mode"):
            continue
        says = f"the recipe says {value} ({field})" if key in recipe else "the recipe has no such"
        faults.append(f"{where}.optimizer.params.{key} = {given}: {says}; remove the block.")
    return faults


def _scheduler_faults(raw: dict[str, Any], where: str, config: RunConfig) -> list[str]:
    """A scheduler block is fine when all is "auto" and its type is the recipe's schedule."""
    block = raw.get("scheduler")
    if not isinstance(block, dict):
        return []
    kind, schedule = str(block.get("type", "auto")), config.train.lr_scheduler_type
    says = f"the recipe says {schedule} (train.lr_scheduler_type); remove the block."
    if kind != "auto" and _SCHEDULES.get(kind) != schedule:
        return [f"{where}.scheduler.type = {kind}: {says}"]
    params = block.get("params") or {}
    return [
        f"{where}.scheduler.params.{key} = {value}: {says}"
        for key, value in params.items()
        if value != "auto"
    ]
