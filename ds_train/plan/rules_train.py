"""Settings of the `train` section that can't work, or say nothing; see rules.py."""

from __future__ import annotations

from collections.abc import Iterator

from ds_train.config.base import is_given
from ds_train.config.run import RunConfig
from ds_train.plan.ds_config import zero_settings
from ds_train.units import Duration


def train_rules(config: RunConfig) -> Iterator[str]:
    """Faults of the optimizer, its schedule and the warm-up."""
    train = config.train
    stage = zero_settings(config).get("stage", 0)
    if train.optim == "adafactor" and stage > 0:
        yield (
            f"train.optim = adafactor with ZeRO stage {stage}: ZeRO flattens the parameters, so "
            f"its factored second moment is lost and the update depends on the number of ranks; "
            f"set engine.preset: zero0, or train.optim: adamw."
        )
    if train.optim != "adamw":
        for field in ("adam_beta1", "adam_beta2", "adam_epsilon"):
            if is_given(train, field):
                yield f"train.{field}: train.optim = {train.optim} has no use for it; remove it."
    if is_given(train, "decay_fraction") and train.lr_scheduler_type != "wsd":
        yield (
            f"train.decay_fraction: lr_scheduler_type = {train.lr_scheduler_type} has no use for "
            f"it (only wsd); remove it."
        )
    if train.lr_scheduler_type == "constant" and train.min_lr_ratio not in (0.0, 1.0):
        yield "train.min_lr_ratio: lr_scheduler_type = constant never falls; remove it."
    yield from _warmup(config)


def _warmup(config: RunConfig) -> Iterator[str]:
    train, warmup = config.train, config.train.warmup_steps
    if isinstance(warmup, int) and train.max_steps is not None and warmup > train.max_steps:
        yield (
            f"train.warmup_steps = {warmup:,}: the run ends after train.max_steps = "
            f"{train.max_steps:,}, before the warm-up does; make one of them fit."
        )
    if isinstance(warmup, Duration) and warmup.unit == "epochs":
        yield f'train.warmup_steps = "{warmup}": must be steps, a share of the run, or tokens.'
    if isinstance(warmup, Duration) and train.max_tokens and warmup.amount > train.max_tokens:
        yield (
            f'train.warmup_steps = "{warmup}": the run ends after train.max_tokens = '
            f"{train.max_tokens:,}, before the warm-up does; make one of them fit."
        )
