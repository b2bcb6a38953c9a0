"""Writes an adapter in PEFT's own file format from a dictionary of trained tensors.

So saving never needs the model gathered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from ds_train.model.adapter import ADAPTER_NAME, ADAPTER_WEIGHTS
from ds_train.model.pissa import plain_lora
from ds_train.model.write import save_tensors


def write_adapter(
    model: PeftModel, trained: Mapping[str, Tensor], initial: Mapping[str, Tensor], folder: Path
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as plain PEFT reads them.

    Args:
        trained: parameter name (as in `model`) -> trained tensor, whole, on the CPU.
        initial: PiSSA's first A and B, else empty; the adapter is then written as an ordinary
            LoRA of rank 2r over the untouched base: B A - B0 A0 = [B, -B0] [A; A0].
    """
    config = model.peft_config[ADAPTER_NAME]
    if config.is_prompt_learning:
        (embedding,) = [tensor for name, tensor in trained.items() if "prompt_encoder" in name]
        tensors = {"prompt_embeddings": embedding}
    else:
        tensors = get_peft_model_state_dict(
            model, state_dict=dict(trained), save_embedding_layers=False
        )
    config = type(config).from_peft_type(**config.to_dict())
    config.inference_mode = True
    if initial:
        tensors = plain_lora(tensors, initial)
        config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
        config.r *= 2
        config.init_lora_weights = True
    save_tensors(folder / ADAPTER_WEIGHTS, tensors)
    config.save_pretrained(str(folder))
