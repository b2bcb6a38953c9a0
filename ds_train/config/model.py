"""The `model` section: which checkpoint is trained, and in which arithmetic."""

from __future__ import annotations

from typing import Any, Literal

from ds_train.config.base import Dtype, Section, UserPath


class ModelConfig(Section):
    """A causal language model of Hugging Face format."""

    name_or_path: UserPath
    """Local folder or hub name of an `AutoModelForCausalLM`."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""

    tokenizer_name_or_path: UserPath | None = None
    """Folder or hub name of the tokenizer; the model's own when left out."""

    dtype: Dtype = "bf16"
    """Arithmetic of weights and activations; fp32 runs everything in fp32."""

    init: Literal["pretrained", "random"] = "pretrained"
    """`random` builds the architecture from its config and trains from scratch."""

    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`, ...; Hugging Face's choice when left out."""

    loss_implementation: Literal["auto", "reference", "chunked", "cpu", "cuda"] = "auto"
    """What computes output layer and cross-entropy: `auto` takes the fastest that this machine has
    (a C++ or CUDA kernel, compiled at its first use), `chunked` is plain torch, `reference` holds
    the logits of all supervised tokens."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more compute, far less memory."""

    quantization: Literal["none", "nf4", "int8"] = "none"
    """Frozen base in 4 or 8 bits through bitsandbytes (QLoRA); needs a CUDA device."""

    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""

    config_overrides: dict[str, Any] = {}
    """Changes to the architecture's config, for `init: random` only."""
