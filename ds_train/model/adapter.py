"""Chooses what trains: a PEFT adapter over a frozen base, a part of the model, or all of it."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    PromptTuningInit,
    get_peft_model,
)
from torch import nn

from ds_train.config.adapter import AdapterConfig
from ds_train.errors import ConfigError, ModelError, quoted, reason
from ds_train.model.depth import freeze_below
from ds_train.model.ia3 import choose_ia3

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_NAME = "default"


def choose_trainable(
    model: Any, config: AdapterConfig, *, base: str, seed: int, tokenizer: str | None = None
) -> Any:
    """The model with `requires_grad` set and, for PEFT methods, its adapter attached (a PeftModel).

    Adapters are initialised from `seed` alone, alike on every rank and ZeRO stage. `base` and
    `tokenizer` are names; that of the model is that of the tokenizer when left out.

    Raises:
        ConfigError: no module or parameter matches the recipe; ModelError: bad adapter folder.
    """
    if config.method == "full":
        return model
    if config.method == "partial":
        if config.frozen_layers is not None:
            freeze_below(model, config.frozen_layers, tied=ties_output(model))
        else:
            _train_matching(model, config.trainable)
        return model
    if getattr(model, "is_quantized", False):
        from peft import prepare_model_for_kbit_training  # only where bitsandbytes is in use

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    torch.manual_seed(seed)
    if config.path is not None:
        return _continue_adapter(model, config.path)
    try:
        adapted = get_peft_model(
            model, _peft_config(model, config, base, tokenizer), autocast_adapter_dtype=False
        )
    except ValueError as error:
        if "not found in the base model" not in str(error):
            raise ConfigError(f"adapter: PEFT can't build it ({reason(error)}).") from error
        raise ConfigError(
            f"adapter.target_modules = {config.target_modules!r}: no module has such a name; the "
            f"model's linear layers are {', '.join(_linear_names(model))}."
        ) from error
    _spell_out_feedforward(adapted)
    return adapted


def _spell_out_feedforward(model: PeftModel) -> None:
    """Name IA3's feedforward modules as its target modules are named.

    PEFT spells `all-linear` out into full names and leaves `feedforward_modules` as endings; it
    then refuses to read its own settings, as the ones are no subset of the others.
    """
    config = model.peft_config[ADAPTER_NAME]
    if not isinstance(config, IA3Config) or isinstance(config.target_modules, str):
        return
    endings = config.feedforward_modules or ()
    if not set(endings) <= set(config.target_modules or ()):
        config.feedforward_modules = [
            name
            for name in sorted(config.target_modules or ())
            if any(name == ending or name.endswith(f".{ending}") for ending in endings)
        ]


def ties_output(model: Any) -> bool:
    """Whether the output layer's weight is that of the embeddings."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def untied_modules(model: Any, config: AdapterConfig) -> list[str]:
    """Those of `modules_to_save` that share their weight in the base, and train as a copy."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    if not model.config.get_text_config().tie_word_embeddings:
        return []
    names = {name.rsplit(".", 1)[-1] for name, one in model.named_modules() if one in embeddings}
    return sorted(names & set(config.modules_to_save))


def _train_matching(model: nn.Module, patterns: list[str]) -> None:
    matched = 0
    for name, parameter in model.named_parameters():
        trains = any(re.search(pattern, name) for pattern in patterns)
        parameter.requires_grad_(trains)
        matched += trains
    if not matched:
        names = [name for name, _ in model.named_parameters()]
        raise ConfigError(
            f"adapter.trainable = {patterns!r}: no parameter name matches; the model's are like "
            f"{names[0]} and {names[-1]}."
        )


def _continue_adapter(model: nn.Module, path: str) -> nn.Module:
    try:
        return PeftModel.from_pretrained(
            model, path, is_trainable=True, autocast_adapter_dtype=False
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"adapter.path = {quoted(path)}: not an adapter of this model "
            f"({reason(error)}); name one that was trained on it."
        ) from error


def _linear_names(model: nn.Module) -> list[str]:
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt")
    }
    return sorted(names - {"lm_head"})  # PEFT's all-linear leaves it out too


def _peft_config(
    model: nn.Module, config: AdapterConfig, base: str, tokenizer: str | None
) -> PeftConfig:
    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    if config.method == "lora":
        return LoraConfig(
            r=config.r,
            # PEFT is annotated with int, and computes with what it gets.
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=config.target_modules or "all-linear",
            exclude_modules=config.exclude_modules,
            modules_to_save=config.modules_to_save or None,
            use_dora=config.use_dora,
            use_rslora=config.use_rslora,
            init_lora_weights=True if config.init == "default" else config.init,
            **common,
        )
    if config.method == "ia3":
        targets = choose_ia3(model, config)
        return IA3Config(
            target_modules=targets.target_modules,
            feedforward_modules=targets.feedforward_modules,
            exclude_modules=config.exclude_modules,
            modules_to_save=config.modules_to_save or None,
            **common,
        )
    common["num_virtual_tokens"] = config.num_virtual_tokens
    if config.method == "prefix_tuning":
        return PrefixTuningConfig(**common)
    if config.prompt_init_text is None:
        return PromptTuningConfig(**common)
    return PromptTuningConfig(
        prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text=config.prompt_init_text,
        tokenizer_name_or_path=tokenizer or base,
        **common,
    )
