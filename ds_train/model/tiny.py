"""Tiny models of real architectures with random weights, and a tokenizer that reads any text.

For tests and benchmarks: everything that depends on an architecture (names, ties, biases, Conv1D,
soft caps) is there, in a few hundred thousand parameters, and nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
_GPT2_SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}


def byte_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte, and <pad>, <s>, </s> as ids 0, 1, 2; <s> opens what is encoded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL_TOKENS
    inner.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, bos_token=bos, eos_token=eos
    )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def tiny_model(model_type: str, *, seed: int = 0, **settings: Any) -> nn.Module:
    """A random causal LM of `model_type` (llama, qwen2, gemma2, gpt2, mistral, ...), fp32.

    Biases, norms and the like get random values too: what is zero or one everywhere hides faults.
    """
    sizes = _GPT2_SIZES if model_type == "gpt2" else _SIZES
    vocab_size = 256 + len(SPECIAL_TOKENS)
    tokens = {"vocab_size": vocab_size, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(model_type, **{**sizes, **tokens, **settings})
    torch.manual_seed(seed)
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def save_tiny(
    folder: Path,
    model_type: str = "llama",
    *,
    seed: int = 0,
    shard_size: str = "5GB",
    dtype: torch.dtype = torch.float32,
    chat_template: str | None = None,
    **settings: Any,
) -> Path:
    """Write a tiny model and its tokenizer as a Hugging Face folder; returns the folder."""
    model: Any = tiny_model(model_type, seed=seed, **settings).to(dtype)
    model.save_pretrained(str(folder), max_shard_size=shard_size)
    byte_tokenizer(chat_template).save_pretrained(str(folder))
    return folder
