"""Builds the base model that the recipe names, in the recipe's dtype, on the CPU or sharded.

Under ZeRO-3 the caller keeps an `HfDeepSpeedConfig` alive while this runs; transformers then
loads the weights shard by shard into partitioned parameters. No rank ever holds the whole model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig
from transformers.utils import logging

from ds_train.config.model import ModelConfig
from ds_train.errors import ModelError, quoted, reason

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_model(
    config: ModelConfig,
    architecture: PretrainedConfig,
    *,
    seed: int,
    device: torch.device | None = None,
) -> Any:
    """The base model (a PreTrainedModel): each parameter as in its files or, if asked for, random.

    Args:
        device: a GPU to load onto directly, so that no rank needs the model in host memory too;
            None for the CPU, and under ZeRO-3, which shards while it loads.

    Raises:
        ModelError: weights are missing, of another shape or unreadable.
    """
    if config.init == "random":
        return _random_model(config, architecture, seed)
    kwargs: dict[str, Any] = {"attn_implementation": config.attn_implementation}
    if device is not None:
        kwargs["device_map"] = {"": device}
    if config.quantization != "none":
        kwargs["quantization_config"] = _quantization(config)
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of missing weights; we refuse them below
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            config.name_or_path,
            config=architecture,
            revision=config.revision,
            dtype=DTYPES[config.dtype],
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are listed; we refuse them below
            **kwargs,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"model.name_or_path = {quoted(config.name_or_path)}: the model can't be built "
            f"({reason(error)})."
        ) from error
    finally:
        logging.set_verbosity(level)
    model, info = loaded
    _refuse_incomplete(config.name_or_path, info)
    return model


def _random_model(config: ModelConfig, architecture: PretrainedConfig, seed: int) -> Any:
    # Built whole on every rank with the same seed, outside ZeRO-3's init context: inside it the
    # architecture's initialisation would see empty tensors.
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        architecture,
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
    )
    return model.to(DTYPES[config.dtype])


def _quantization(config: ModelConfig) -> BitsAndBytesConfig:
    if not torch.cuda.is_available():
        raise ModelError(
            f"model.quantization = {config.quantization}: needs a CUDA device, and this machine "
            "shows none; set model.quantization: none."
        )
    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[config.dtype],
        bnb_4bit_quant_storage=DTYPES[config.dtype],
    )


def _refuse_incomplete(name: str, info: dict[str, Any]) -> None:
    """transformers initialises what it does not find at random and only logs it; we refuse."""
    missing = sorted(info.get("missing_keys", ()))
    mismatched = sorted(
        str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ())
    )
    if missing or mismatched:
        parts = [("not in its files", missing), ("there in another shape", mismatched)]
        found = " and ".join(
            f"{len(names)} of the model's parameters {'is' if len(names) == 1 else 'are'} {what} "
            f"({_shown(names)})"
            for what, names in parts
            if names
        )
        raise ModelError(
            f"model.name_or_path = {quoted(name)}: {found}; they would start from random values. "
            "Name a complete checkpoint, or set model.init: random to train from scratch."
        )


def _shown(names: list[str], most: int = 3) -> str:
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Number of parameters, and how many of them train (whole sizes, also under ZeRO-3)."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
