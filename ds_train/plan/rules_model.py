"""Models that can't be had, or not trained as the recipe says; see rules.py."""

from __future__ import annotations

from collections.abc import Iterator

from ds_train.config.run import RunConfig
from ds_train.plan.ds_config import zero_settings


def model_rules(config: RunConfig) -> Iterator[str]:
    """Faults of weights, attention and quantisation."""
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
    yield from _quantization(config)


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
