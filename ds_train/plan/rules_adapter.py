"""Settings of the `adapter` section that can't work, or say nothing; see rules.py."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ds_train.config.adapter import VIRTUAL_TOKEN_METHODS
from ds_train.config.base import is_given
from ds_train.config.run import RunConfig

_PEFT_METHODS = ("lora", "ia3", *VIRTUAL_TOKEN_METHODS)

_ONLY_FOR: dict[str, tuple[str, ...]] = {
    "use_dora": ("lora",),
    "use_rslora": ("lora",),
    "init": ("lora",),
    "lora_plus_lr_ratio": ("lora",),
    "target_modules": ("lora", "ia3"),
    "exclude_modules": ("lora", "ia3"),
    "modules_to_save": ("lora", "ia3"),
    "feedforward_modules": ("ia3",),
    "prompt_init_text": ("prompt_tuning",),
    "trainable": ("partial",),
    "frozen_layers": ("partial",),
    "path": _PEFT_METHODS,
}


def adapter_rules(config: RunConfig) -> Iterator[str]:
    """Faults of a method and its settings."""
    yield from _settings_of_others(config)
    yield from _targets(config)
    yield from _virtual_tokens(config)


def _settings_of_others(config: RunConfig) -> Iterator[str]:
    adapter = config.adapter
    for field, methods in _ONLY_FOR.items():
        if adapter.method in methods or not is_given(adapter, field):
            continue
        if field == "target_modules" and adapter.target_modules == "all-linear":
            continue  # the usual line, left over from a LoRA recipe, and harmless
        yield (
            f"adapter.{field}: adapter.method = {adapter.method} has no use for it (only "
            f"{', '.join(methods)}); remove it or change the method."
        )
    if adapter.trainable and adapter.frozen_layers is not None:
        yield (
            "adapter.trainable with adapter.frozen_layers: both say which parameters train; remove "
            "one of them."
        )
    if adapter.method == "partial" and not adapter.trainable and adapter.frozen_layers is None:
        yield (
            "adapter.trainable is empty: adapter.method = partial trains the parameters whose "
            "names match; give regular expressions, e.g. [layers\\.11\\.], or frozen_layers."
        )


def _targets(config: RunConfig) -> Iterator[str]:
    adapter = config.adapter
    fields: list[tuple[str, str | list[str] | None]] = [
        ("target_modules", adapter.target_modules),
        ("exclude_modules", adapter.exclude_modules),
    ]
    patterns = [(field, value) for field, value in fields if isinstance(value, str)]
    patterns += [(f"trainable[{i}]", text) for i, text in enumerate(adapter.trainable)]
    for field, pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            yield f'adapter.{field} = "{pattern}": not a regular expression: {error}.'
    targets, inputs = adapter.target_modules, adapter.feedforward_modules
    if isinstance(targets, list) and inputs and not set(inputs) <= set(targets):
        extra = ", ".join(sorted(set(inputs) - set(targets)))
        yield (
            f"adapter.feedforward_modules names {extra}, not in adapter.target_modules; "
            f"IA3 wants the first to be part of the second."
        )
    if adapter.init == "pissa" and adapter.use_dora:
        yield (
            "adapter.init = pissa with adapter.use_dora = true: both rewrite the base weight that "
            "the other starts from; choose one of them."
        )


def _virtual_tokens(config: RunConfig) -> Iterator[str]:
    method = config.adapter.method
    if method not in VIRTUAL_TOKEN_METHODS:
        return
    if config.data.packing:
        yield (
            f"data.packing = true with adapter.method = {method}: the virtual tokens stand before "
            f"the row, where only its first document would see them; set data.packing: false."
        )
    if method == "prefix_tuning" and config.model.gradient_checkpointing:
        yield (
            "model.gradient_checkpointing = true with adapter.method = prefix_tuning: the prefix "
            "is a key-value cache, which recomputing drops; set gradient_checkpointing: false."
        )
