"""The settings that tuning may change: none of them changes what is learned.

Stage or preset, rows that a device holds at once, recomputation of activations and DeepSpeed's
bucket sizes. The rows of a step stay what they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ds_train.config.run import RunConfig
from ds_train.plan.batch import BatchPlan
from ds_train.plan.ds_config import deep_merge
from ds_train.plan.estimate import with_preset
from ds_train.plan.presets import DEFAULT_PRESET


@dataclass(frozen=True)
class Choice:
    """One setting of everything that tuning may change."""

    preset: str | None
    """Of engine.preset; None keeps the recipe's own engine section."""
    micro_batch_size: int
    recompute: bool
    """model.gradient_checkpointing"""
    buckets: tuple[tuple[str, int], ...] = ()
    """Keys of zero_optimization that are set to a size."""

    def __str__(self) -> str:
        """In a few words."""
        parts = [self.preset or "own engine section", f"{self.micro_batch_size} rows a device"]
        if self.recompute:
            parts.append("checkpointing")
        return ", ".join([*parts, *(f"{key} {size:.3g}" for key, size in self.buckets)])

    def with_bucket(self, key: str, size: int) -> Choice:
        """The same with one more bucket of that size."""
        others = [one for one in self.buckets if one[0] != key]
        return replace(self, buckets=(*others, (key, size)))


def current(config: RunConfig) -> Choice:
    """What the recipe says now. A recipe that names no preset has the default one."""
    preset = None if config.engine.config is not None else config.engine.preset or DEFAULT_PRESET
    train = config.train
    return Choice(preset, train.per_device_train_batch_size, config.model.gradient_checkpointing)


def micro_batch_sizes(batch: BatchPlan) -> list[int]:
    """Rows that a device may hold at once, ascending: those that divide its rows of a step."""
    rows = batch.micro_batch_size * batch.accumulation_steps
    return [size for size in range(1, rows + 1) if rows % size == 0]


def changes(config: RunConfig, choice: Choice, batch: BatchPlan) -> dict[str, Any]:
    """Dotted keys of the recipe with their new values; empty where nothing changes.

    A preset that is left takes the engine section's own overrides of zero_optimization with it:
    they were made for another one.
    """
    found: dict[str, Any] = {}
    now = current(config)
    if choice.preset is not None and choice.preset != now.preset:
        found["engine.preset"] = choice.preset
        if "zero_optimization" in config.engine.overrides:
            found["engine.overrides.zero_optimization"] = {}
    if choice.micro_batch_size != now.micro_batch_size:
        found["train.per_device_train_batch_size"] = choice.micro_batch_size
        if config.train.global_batch_size is None:
            rows = batch.micro_batch_size * batch.accumulation_steps
            found["train.gradient_accumulation_steps"] = rows // choice.micro_batch_size
    if choice.recompute != now.recompute:
        found["model.gradient_checkpointing"] = choice.recompute
    for key, size in choice.buckets:
        found[f"engine.overrides.zero_optimization.{key}"] = size
    return found


def apply(config: RunConfig, choice: Choice, batch: BatchPlan) -> RunConfig:
    """The recipe with a choice."""
    found = changes(config, choice, batch)
    if "engine.preset" in found:
        kept = {k: v for k, v in config.engine.overrides.items() if k != "zero_optimization"}
        engine = with_preset(config, str(choice.preset)).engine
        engine = engine.model_copy(update={"overrides": deep_merge(engine.overrides, kept)})
        config = config.model_copy(update={"engine": engine})
    if choice.buckets:
        overrides = deep_merge(config.engine.overrides, {"zero_optimization": dict(choice.buckets)})
        engine = config.engine.model_copy(update={"overrides": overrides})
        config = config.model_copy(update={"engine": engine})
    train = {key.removeprefix("train."): v for key, v in found.items() if key.startswith("train.")}
    model = {"gradient_checkpointing": choice.recompute}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            "model": config.model.model_copy(update=model),
        }
    )
