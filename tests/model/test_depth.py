"""Depths of parameters in real architectures, and the rates and stages that follow from them."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

from ds_train.config.adapter import AdapterConfig
from ds_train.errors import ConfigError
from ds_train.model.adapter import choose_trainable
from ds_train.model.depth import Depths, lr_scale, num_stages, unfreezing_stage
from ds_train.model.parameter_groups import parameter_groups
from ds_train.model.tiny import tiny_model

# architecture -> parts of names and their depths, of 2 layers
CASES = {
    "llama": {"embed_tokens": 0, "layers.0.": 1, "layers.1.": 2, "model.norm": 3, "lm_head": 3},
    "gpt2": {"wte": 0, "wpe": 0, "h.0.": 1, "h.1.": 2, "ln_f": 3},
    "gemma2": {"embed_tokens": 0, "layers.0.": 1, "layers.1.": 2, "model.norm": 3},
    "gpt_neox": {"embed_in": 0, "layers.0.": 1, "layers.1.": 2, "final_layer_norm": 3},
    "qwen3_moe": {"embed_tokens": 0, "layers.0.": 1, "layers.1.": 2, "lm_head": 3},
}


def model_of(architecture: str, **settings: Any) -> Any:
    if architecture == "qwen3_moe":  # as many experts as layers: their list is no list of layers
        settings |= {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
    return tiny_model(architecture, **{"tie_word_embeddings": False, **settings})


@pytest.mark.parametrize("architecture", CASES)
def test_depths(architecture: str) -> None:
    model = model_of(architecture)
    depths = Depths(model, config=model.config, setting="train.unfreeze")
    seen = set()
    for name, _ in model.named_parameters():
        for part, depth in CASES[architecture].items():
            if f".{part}" in f".{name}":
                assert depths.of(name) == depth, name
                seen.add(part)
    assert seen == set(CASES[architecture])
    assert {depths.of(name) for name, _ in model.named_parameters()} == {0, 1, 2, 3}


def test_adapters_have_the_depth_of_their_layer() -> None:
    model = model_of("llama")
    adapted: Any = get_peft_model(model, LoraConfig(target_modules=["q_proj", "embed_tokens"]))
    depths = Depths(adapted, config=model.config, setting="train.layer_lr_decay")
    of_lora = {name: depths.of(name) for name, _ in adapted.named_parameters() if "lora_" in name}
    assert set(of_lora.values()) == {0, 1, 2}
    assert all(depth == 0 for name, depth in of_lora.items() if "embed_tokens" in name)


def test_a_model_whose_layers_cannot_be_told() -> None:
    model = model_of("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(ConfigError, match=r"train\.unfreeze: LlamaConfig names 7 layers, and the"):
        Depths(model, config=model.config, setting="train.unfreeze")


def test_rates() -> None:
    assert [lr_scale(depth, 2, 0.5) for depth in range(4)] == [0.125, 0.25, 0.5, 1.0]
    assert [lr_scale(depth, 2, 1.0) for depth in range(4)] == [1.0] * 4


@pytest.mark.parametrize(
    ("num_layers", "at_once", "stages"),
    [
        (2, 1, [2, 1, 0, 0]),
        (4, 2, [2, 1, 1, 0, 0, 0]),
        (5, 2, [3, 2, 1, 1, 0, 0, 0]),
        (3, 9, [1, 0, 0, 0, 0]),
    ],
)
def test_stages_of_unfreezing(num_layers: int, at_once: int, stages: list[int]) -> None:
    found = [unfreezing_stage(depth, num_layers, at_once) for depth in range(num_layers + 2)]
    assert found == stages and max(found) == num_stages(num_layers, at_once) - 1


def test_groups_by_rate_and_stage() -> None:
    model = model_of("llama")
    depths = Depths(model, config=model.config, setting="train.unfreeze")
    groups = parameter_groups(
        model,
        weight_decay=0.1,
        lora_plus_lr_ratio=None,
        rate_of=lambda name: lr_scale(depths.of(name), 2, 0.5),
        stage_of=lambda name: unfreezing_stage(depths.of(name), 2, 1),
    )
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    found = {(group["stage"], group["lr_scale"], group["weight_decay"]) for group in groups}
    assert found == {
        (0, 1.0, 0.1),  # output layer
        (0, 1.0, 0.0),  # last norm
        (0, 0.5, 0.1),
        (0, 0.5, 0.0),
        (1, 0.25, 0.1),
        (1, 0.25, 0.0),
        (2, 0.125, 0.1),
    }


def trains(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen(layers: Any, **settings: Any) -> set[str]:
    config = AdapterConfig(method="partial", frozen_layers=layers)
    return trains(choose_trainable(model_of("llama", **settings), config, base="x", seed=0))


def test_frozen_layers() -> None:
    everything = trains(model_of("llama"))
    none, one, both = frozen(0), frozen(1), frozen("all")
    assert everything - none == {"model.embed_tokens.weight"}
    assert none - one == {name for name in everything if ".layers.0." in name}
    assert both == frozen(2) == {"model.norm.weight", "lm_head.weight"}
    # a tied output layer trains with its embeddings, but not where layers below it train too
    assert frozen("all", tie_word_embeddings=True) == {
        "model.norm.weight",
        "model.embed_tokens.weight",
    }
    assert "model.embed_tokens.weight" not in frozen(1, tie_word_embeddings=True)


def test_more_frozen_layers_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"adapter\.frozen_layers = 3: the model has 2 layers; "):
        frozen(3)
