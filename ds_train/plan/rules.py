"""Combinations that can't work, each refused before the launch with the reason and the way out.

A rule stands here only when the run would fail late, train something else than the recipe says,
or ignore a setting in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from ds_train.config.adapter import VIRTUAL_TOKEN_METHODS
from ds_train.config.base import Section
from ds_train.config.run import RunConfig
from ds_train.plan.ds_config import zero_settings
from ds_train.plan.rules_curriculum import curriculum_rules
from ds_train.plan.rules_engine import offload_rules, precision_rules, zero_rules
from ds_train.plan.rules_episodes import episode_rules
from ds_train.plan.rules_labelled import labelled_rules
from ds_train.plan.rules_losses import losses_rules
from ds_train.plan.rules_report import report_rules
from ds_train.plan.rules_seq_len import seq_len_rules
from ds_train.plan.rules_sharing import sharing_rules
from ds_train.plan.rules_transfer import transfer_rules
from ds_train.units import Duration

PEFT_METHODS = ("lora", "ia3", *VIRTUAL_TOKEN_METHODS)

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
    "path": PEFT_METHODS,
}


def check_rules(config: RunConfig, world_size: int | None) -> list[str]:
    """Every fault of combinations. `world_size` is the number of ranks, None when unknown."""
    return [
        *_method_settings(config),
        *_adapter(config),
        *_virtual_tokens(config),
        *_model(config),
        *_quantization(config),
        *_train(config),
        *_data(config),
        *curriculum_rules(config),
        *seq_len_rules(config),
        *transfer_rules(config),
        *episode_rules(config),
        *losses_rules(config),
        *_evaluation(config),
        *_tasks(config),
        *zero_rules(config, world_size),
        *offload_rules(config),
        *precision_rules(config),
        *sharing_rules(config),
        *report_rules(config),
        *_packages(config),
    ]


def _given(section: Section, field: str) -> bool:
    """Whether a setting differs from its default; a dumped recipe holds every default."""
    value: Any = getattr(section, field)
    return bool(value != type(section).model_fields[field].get_default(call_default_factory=True))


def _method_settings(config: RunConfig) -> Iterator[str]:
    adapter = config.adapter
    for field, methods in _ONLY_FOR.items():
        if adapter.method in methods or not _given(adapter, field):
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


def _adapter(config: RunConfig) -> Iterator[str]:
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


def _model(config: RunConfig) -> Iterator[str]:
    model, method = config.model, config.adapter.method
    if model.init == "random" and method != "full":
        yield (
            f"model.init = random with adapter.method = {method}: random weights would stay "
            f"frozen; set adapter.method: full, or model.init: pretrained."
        )
    if model.config_overrides and model.init == "pretrained":
        yield (
            "model.config_overrides with model.init = pretrained: another architecture does not "
            "fit the checkpoint's weights; set model.init: random, or remove the overrides."
        )
    if model.attn_implementation == "flash_attention_2" and model.dtype == "fp32":
        yield (
            "model.attn_implementation = flash_attention_2 with model.dtype = fp32: it computes "
            "in 16 bits only; set model.dtype: bf16, or attn_implementation: sdpa."
        )


def _quantization(config: RunConfig) -> Iterator[str]:
    kind, adapter = config.model.quantization, config.adapter
    if kind == "none":
        return
    if adapter.method in ("full", "partial"):
        yield (
            f"model.quantization = {kind} with adapter.method = {adapter.method}: quantised "
            f"weights can't train; set adapter.method: lora, or quantization: none."
        )
    if config.model.init == "random":
        yield (
            f"model.quantization = {kind} with model.init = random: there is nothing to quantise; "
            f"set quantization: none."
        )
    if adapter.init == "pissa":
        yield (
            f"adapter.init = pissa with model.quantization = {kind}: its principal components are "
            f"taken out of full-precision weights; set adapter.init: default."
        )
    if zero_settings(config).get("stage") == 3:
        yield (
            f"model.quantization = {kind} with ZeRO stage 3: packed weights can't be sharded; the "
            f"quantised base is small, set engine.preset: zero2."
        )


def _train(config: RunConfig) -> Iterator[str]:
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
            if _given(train, field):
                yield f"train.{field}: train.optim = {train.optim} has no use for it; remove it."
    if _given(train, "decay_fraction") and train.lr_scheduler_type != "wsd":
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


def _data(config: RunConfig) -> Iterator[str]:
    data = config.data
    if data.max_length < 2:
        yield (
            "data.max_length = 1: a row needs at least 2 tokens, one to read and one to predict."
        )
    sources = [(f"data.train[{i}]", source) for i, source in enumerate(data.train)]
    sources += [
        (f"data.validation.sources[{i}]", source)
        for i, source in enumerate(data.validation.sources)
    ]
    dev = [] if data.dev is None else data.dev.sources
    sources += [(f"data.dev.sources[{i}]", source) for i, source in enumerate(dev)]
    for name, source in sources:
        loss_on, place = source.loss_on, f"{name}.loss_on"
        if loss_on is None:
            loss_on, place = data.loss_on, "data.loss_on"
        if source.format == "text" and loss_on not in (None, "all"):
            yield (
                f"{place} = {loss_on}: {name} is plain text, which has no {loss_on}; set "
                f"{name}.loss_on: all."
            )
        yield from labelled_rules(name, source)


def _evaluation(config: RunConfig) -> Iterator[str]:
    evaluate, validation = config.evaluate, config.data.validation
    subset = None if config.fewshot is None else config.fewshot.subset
    if validation.sources or validation.fraction or (subset is not None and subset.dev):
        return
    if config.data.dev is not None:
        return  # its own rule asks for validation
    if config.held_out_tasks:
        return
    for field in ("every", "at_start", "max_rows", "rank_classification"):
        if _given(evaluate, field):
            yield (
                f"evaluate.{field}: there is no validation data; set data.validation: "
                f"{{fraction: 0.05}} or give data.validation.sources."
            )


def _tasks(config: RunConfig) -> Iterator[str]:
    if config.evaluate.tasks:
        return
    for field in ("task_path", "shots", "seeds", "tasks_every"):
        if _given(config.evaluate, field):
            yield f"evaluate.{field}: is for evaluation tasks; name them in evaluate.tasks: [a, b]."


def _packages(config: RunConfig) -> Iterator[str]:
    if config.evaluate.tasks and not _is_installed("lm_eval"):
        yield (
            "evaluate.tasks: the package lm_eval is not installed; run pip install "
            "'ds-train[eval]', or remove it."
        )
    for tracker in config.report.trackers:
        if not _is_installed(tracker):
            yield (
                f"report.trackers: the package {tracker} is not installed; "
                f"run pip install 'ds-train[{tracker}]', or remove it."
            )
    if config.model.quantization != "none" and not _is_installed("bitsandbytes"):
        yield (
            f"model.quantization = {config.model.quantization}: the package bitsandbytes is not "
            f"installed; run pip install 'ds-train[qlora]', or set quantization: none."
        )


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; a mere folder of its name (`wandb/` of runs) can't."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
