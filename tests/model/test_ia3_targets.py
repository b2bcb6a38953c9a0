"""IA3's layers of every architecture: keys, values, second feed-forward layers, nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ds_train.config.adapter import AdapterConfig
from ds_train.errors import ConfigError
from ds_train.model.adapter import choose_trainable
from ds_train.model.ia3 import ia3_targets

LLAMA_LIKE = ["k_proj", "v_proj", "down_proj"]
EXPECTED = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "gemma": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE,
    "gemma3_text": LLAMA_LIKE,
    "olmo2": LLAMA_LIKE,
    "smollm3": LLAMA_LIKE,
    "cohere": LLAMA_LIKE,
    "granite": LLAMA_LIKE,
    "phi": ["k_proj", "v_proj", "fc2"],
    "phi3": ["qkv_proj", "down_proj"],
    "opt": ["k_proj", "v_proj", "fc2"],
    "gptj": ["k_proj", "v_proj", "fc_out"],
    "gpt_neo": ["k_proj", "v_proj", "mlp.c_proj"],
    "starcoder2": ["k_proj", "v_proj", "mlp.c_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "bloom": ["query_key_value", "dense_4h_to_h"],
    "falcon": ["query_key_value", "dense_4h_to_h"],
    "deepseek_v3": ["kv_b_proj", "down_proj"],
    "mixtral": ["k_proj", "v_proj"],
    "qwen3_moe": ["k_proj", "v_proj"],
}


def on_meta(kind: str) -> Any:
    """A model of the architecture with two layers and no memory."""
    config = AutoConfig.for_model(kind)
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        if hasattr(config, key):
            setattr(config, key, 2)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    if kind == "gpt_neo":
        config.attention_types, config.attention_layers = [[["global"], 2]], ["global"] * 2
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", EXPECTED)
def test_layers_of_an_architecture(kind: str) -> None:
    targets = ia3_targets(on_meta(kind))
    assert targets.target_modules == EXPECTED[kind]
    second = set(EXPECTED[kind]) - {"k_proj", "v_proj", "kv_b_proj", "qkv_proj", "c_attn"}
    assert set(targets.feedforward_modules) == second - {"query_key_value"}


@pytest.mark.parametrize(
    ("kind", "remark"),
    [
        ("gpt2", "c_attn holds queries, keys and values, and all of it is scaled"),
        ("mixtral", "routed experts are no linear layers here and stay as they are"),
    ],
)
def test_what_differs_from_the_paper_is_said(kind: str, remark: str) -> None:
    assert remark in ia3_targets(on_meta(kind)).remark


def test_no_query_is_scaled_and_every_block_is() -> None:
    model = choose_trainable(on_meta("qwen2"), AdapterConfig(method="ia3"), base="b", seed=0)
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    assert len(trained) == 2 * 3
    assert not [name for name in trained if "q_proj" in name]


def test_chosen_layers_know_the_second_ones() -> None:
    config = AdapterConfig(method="ia3", target_modules=["q_proj", "mlp.down_proj"])
    model = choose_trainable(on_meta("llama"), config, base="b", seed=0)
    assert model.peft_config["default"].feedforward_modules == {"mlp.down_proj"}


def test_an_unknown_architecture_lists_its_layers() -> None:
    model = nn.ModuleDict({"mixer": nn.Linear(2, 2), "gate": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"its linear layers are gate, mixer\. Name those"):
        ia3_targets(model)
