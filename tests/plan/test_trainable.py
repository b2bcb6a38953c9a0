"""What trains, tensor by tensor, against the models that PEFT really makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import init_empty_weights
from test_shapes import DEEPSEEK, GPT2, SIZES
from transformers import AutoConfig, AutoModelForCausalLM

from ds_train.config.adapter import AdapterConfig
from ds_train.config.model import ModelConfig
from ds_train.errors import ConfigError, ModelError
from ds_train.model.adapter import choose_trainable
from ds_train.model.tiny import save_tiny
from ds_train.plan.count import shape_of
from ds_train.plan.model_files import describe_model, local_weights, shape_of_headers
from ds_train.plan.trainable import Trainable, choose

TIED = {"tie_word_embeddings": True}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {}, {"r": 5}),
    ("llama", TIED, {"use_dora": True}),
    ("llama", {"attention_bias": True}, {"target_modules": ["q_proj", "mlp.down_proj"]}),
    ("llama", {}, {"target_modules": r".*layers\.[12]\.self_attn\.[qk]_proj"}),
    ("llama", {}, {"exclude_modules": ["gate_proj"], "use_rslora": True}),
    ("llama", {}, {"exclude_modules": r".*\.mlp\..*", "init": "gaussian"}),
    ("llama", {}, {"modules_to_save": ["lm_head"]}),
    ("llama", {}, {"modules_to_save": ["embed_tokens", "norm"]}),
    ("llama", {}, {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}),
    ("llama", {}, {"method": "full"}),
    ("llama", TIED, {"method": "full"}),
    ("llama", {}, {"method": "partial", "trainable": [r"layers\.1\.", "norm"]}),
    ("llama", {}, {"method": "partial", "frozen_layers": 2}),
    ("llama", {}, {"method": "partial", "frozen_layers": "all"}),
    ("llama", TIED, {"method": "partial", "frozen_layers": "all"}),
    ("llama", TIED, {"method": "partial", "frozen_layers": 1}),
    ("llama", {"head_dim": 14}, {"method": "prefix_tuning", "num_virtual_tokens": 7}),
    ("llama", {}, {"method": "prompt_tuning", "num_virtual_tokens": 7}),
    ("llama", {}, {"method": "ia3"}),
    ("llama", {}, {"method": "ia3", "modules_to_save": ["lm_head"]}),
    ("llama", {}, {"method": "ia3", "target_modules": ["q_proj", "down_proj"]}),
    ("qwen2", {}, {"r": 3}),
    ("qwen2", {}, {"method": "ia3"}),
    ("qwen2", {}, {"method": "prefix_tuning"}),
    ("qwen3_moe", {"num_experts": 4, "mlp_only_layers": [1]}, {}),
    ("qwen3_moe", {"num_experts": 4}, {"method": "ia3"}),
    ("mixtral", {"num_local_experts": 3}, {"target_modules": "all-linear"}),
    ("mixtral", {"num_local_experts": 3}, {"method": "prefix_tuning"}),
    ("mixtral", {"num_local_experts": 3}, {"target_modules": ["q_proj", "w2"]}),
    ("qwen3_moe", {"num_experts": 4}, {"target_modules": ["o_proj", "gate_proj", "up_proj"]}),
    ("qwen3_moe", {"num_experts": 4}, {"target_modules": r".*\.(q_proj|down_proj)"}),
    ("gemma3_text", {"head_dim": 12}, {"use_dora": True}),
    ("gemma3_text", {"head_dim": 12}, {"method": "prefix_tuning"}),
    ("phi", {}, {}),
    ("phi", {}, {"method": "ia3"}),
    ("phi", {}, {"method": "full"}),
    ("phi3", {}, {"method": "ia3"}),
    ("gpt2", {}, {}),
    ("gpt2", {}, {"method": "ia3"}),
    ("gpt2", {}, {"method": "prefix_tuning"}),
    ("gpt2", {}, {"method": "partial", "frozen_layers": 1}),
    ("gpt_neox", {}, {}),
    ("gpt_neox", {}, {"method": "ia3"}),
    ("gpt_neox", {}, {"method": "prefix_tuning"}),
    ("olmo2", {}, {"r": 2}),
    ("deepseek_v3", DEEPSEEK, {}),
    ("deepseek_v3", DEEPSEEK, {"method": "ia3"}),
    ("deepseek_v3", DEEPSEEK, {"method": "prefix_tuning"}),
]


def real(model: Any) -> dict[str, tuple[int, ...]]:
    """Name (without PEFT's prefixes) and shape of what trains."""
    return {
        name.removeprefix("base_model.model."): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def planned(trainable: Trainable) -> dict[str, tuple[int, ...]]:
    """The same of a plan."""
    return {one.name: one.shape for one in trainable.trained}


@pytest.mark.parametrize(("model_type", "sizes", "adapter"), CASES)
def test_what_trains(model_type: str, sizes: dict[str, Any], adapter: dict[str, Any]) -> None:
    base = GPT2 if model_type == "gpt2" else SIZES
    config = AutoConfig.for_model(model_type, **{**base, **sizes})
    section = AdapterConfig(**adapter)
    plan = choose(shape_of(config.to_dict()), section)
    # PEFT writes initial values, so the model is a real one; it is tiny
    model = AutoModelForCausalLM.from_config(config)
    model = choose_trainable(model, section, base="x", seed=0)
    counted, made = planned(plan), real(model)
    if adapter.get("method") in ("prompt_tuning", "prefix_tuning"):
        assert list(counted.values()) == list(made.values())
    else:
        assert counted == made
    assert plan.num_elements == sum(parameter.numel() for parameter in model.parameters())


def test_a_stored_adapter(tmp_path: Path) -> None:
    """Continuing from a folder: its own rank counts, not the recipe's."""
    folder = save_tiny(tmp_path / "model", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    made = choose_trainable(
        model, AdapterConfig(r=3, modules_to_save=["lm_head"]), base=str(folder), seed=0
    )
    made.save_pretrained(tmp_path / "adapter")
    shape = describe_model(ModelConfig(name_or_path=str(folder)))
    plan = choose(shape, AdapterConfig(r=64, path=str(tmp_path / "adapter")))
    assert plan.num_trainable == sum(p.numel() for p in made.parameters() if p.requires_grad)
    with pytest.raises(ModelError, match=r"adapter\.path = .*adapter_model\.safetensors"):
        choose(shape, AdapterConfig(path=str(tmp_path)))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2"])
def test_the_headers_of_an_unknown_architecture(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", model_type, shard_size="150KB")
    known = describe_model(ModelConfig(name_or_path=str(folder)))
    files = local_weights(str(folder))
    assert len(files) > 1
    counted = shape_of_headers(files, {"model_type": "other", "num_attention_heads": 4})
    assert counted.num_parameters == known.num_parameters
    assert counted.tied == known.tied
    assert (counted.hidden, counted.num_layers) == (64, 2)
    if model_type != "gpt2":  # whose matrices are stored the other way round
        lora = AdapterConfig(r=4)
        assert counted.vocab == known.vocab
        assert planned(choose(counted, lora)) == planned(choose(known, lora))


def test_faults() -> None:
    with init_empty_weights():
        shape = shape_of(AutoConfig.for_model("llama", **SIZES).to_dict())
    with pytest.raises(ConfigError, match="no module has such a name; the model's linear layers"):
        choose(shape, AdapterConfig(target_modules=["query"]))
    with pytest.raises(ConfigError, match=r"no parameter name matches; the model's are like model"):
        choose(shape, AdapterConfig(method="partial", trainable=["xyz"]))
    with pytest.raises(ConfigError, match="frozen_layers = 9: the model has 3 layers"):
        choose(shape, AdapterConfig(method="partial", frozen_layers=9))
    with pytest.raises(ModelError, match=r"its config\.json is not on this machine"):
        describe_model(ModelConfig(name_or_path="org/absent-model"))
