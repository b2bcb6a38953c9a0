"""The table of architectures against transformers itself: every parameter, name and shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

from ds_train.errors import ModelError
from ds_train.plan.architectures import ARCHITECTURES
from ds_train.plan.count import shape_of
from ds_train.plan.shapes import ModelShape

SIZES: dict[str, Any] = {
    "hidden_size": 60,
    "intermediate_size": 92,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 301,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 60, "n_layer": 3, "n_head": 6, "n_positions": 128, "vocab_size": 301}
DEEPSEEK = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 14, "num_key_value_heads": 6}),
    ("mistral", {}),
    ("mistral", {"head_dim": 20, "tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    ("qwen3", {"head_dim": 16}),
    ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
    ("qwen3_moe", {"num_experts": 4, "mlp_only_layers": [1], "attention_bias": True}),
    ("qwen3_moe", {"num_experts": 3, "decoder_sparse_step": 2, "head_dim": 16}),
    ("mixtral", {"num_local_experts": 4}),
    ("mixtral", {"num_local_experts": 3, "head_dim": 8, "tie_word_embeddings": True}),
    ("gemma", {}),
    ("gemma2", {"head_dim": 12}),
    ("gemma2", {"attention_bias": True, "tie_word_embeddings": False}),
    ("gemma3_text", {}),
    ("gemma3_text", {"head_dim": 18, "num_key_value_heads": 3}),
    ("phi", {}),
    ("phi", {"qk_layernorm": True, "num_key_value_heads": 3}),
    ("phi3", {}),
    ("phi3", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    ("gpt2", {}),
    ("gpt2", {"n_inner": 77, "tie_word_embeddings": False}),
    ("gpt_neox", {}),
    ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    ("olmo2", {}),
    ("olmo2", {"attention_bias": True, "num_key_value_heads": 6}),
    ("smollm3", {}),
    ("smollm3", {"mlp_bias": True, "attention_bias": True, "tie_word_embeddings": False}),
    ("deepseek_v3", DEEPSEEK),
    ("deepseek_v3", {**DEEPSEEK, "q_lora_rank": None, "attention_bias": True}),
    ("deepseek_v3", {**DEEPSEEK, "n_shared_experts": 2, "first_k_dense_replace": 0}),
]
KINDS = {
    torch.nn.Embedding: {"embedding"},
    torch.nn.Linear: {"linear"},
    torch.nn.LayerNorm: {"layernorm"},
}


def both(model_type: str, changes: dict[str, Any]) -> tuple[ModelShape, Any]:
    """What the table says, and the model itself on the meta device."""
    sizes = GPT2 if model_type == "gpt2" else SIZES
    config = AutoConfig.for_model(model_type, **{**sizes, **changes})
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return shape_of(config.to_dict()), model


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_every_parameter(model_type: str, changes: dict[str, Any]) -> None:
    shape, model = both(model_type, changes)
    real = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    counted = {
        name.removesuffix(".weight") if "lm_head.bias" in name else name: sizes
        for name, sizes in shape.tensors
    }
    assert counted == real
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    for module in shape.own_modules:
        if module.kind == "other":
            continue
        owner = model.get_submodule(
            module.name.rsplit(".", 1)[0] if module.kind == "experts" else module.name
        )
        for kind, names in KINDS.items():
            if type(owner) is kind:
                assert module.kind in names
        assert (module.kind == "conv1d") == (type(owner).__name__ == "Conv1D")
        assert module.is_linear == (type(owner).__name__ in ("Linear", "Conv1D"))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_config_json_may_leave_out(model_type: str) -> None:
    """Each default, and each condition of the table, is that of transformers' class."""
    config = AutoConfig.for_model(model_type)
    raw = type(config)
    for key, value in ARCHITECTURES[model_type].defaults.items():
        field = raw.__dataclass_fields__.get(key)  # type: ignore[attr-defined]
        real = getattr(config, key, None)
        if value is None and field is not None:
            assert field.default is None
        elif value is None:
            assert real is None or key == "head_dim"
        else:
            assert real == value, key


def test_real_configs() -> None:
    """Published sizes (model cards), from configs as they stand on the hub."""
    llama = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128256,
    }  # fmt: skip
    assert shape_of(llama).num_parameters == 8_030_261_248
    qwen = {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151936, "tie_word_embeddings": True,
    }  # fmt: skip
    assert shape_of(qwen).num_parameters == 494_032_768


def test_an_unknown_architecture_and_a_missing_size() -> None:
    with pytest.raises(ModelError, match=r'model_type = "lama".* Did you mean llama\?'):
        shape_of({"model_type": "lama"})
    with pytest.raises(ModelError, match="hidden_size is missing"):
        shape_of({"model_type": "llama"})
    with pytest.raises(ModelError, match="vocab_size = 'x'"):
        shape_of({**dict.fromkeys(SIZES, 4), "model_type": "llama", "vocab_size": "x"})
