"""The plan's loss in fp32 on a CPU: slabs of the vocabulary, with and without LoRA on the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_activations import sizes_of
from transformers import AutoConfig

from ds_train.config.run import RunConfig
from ds_train.plan.cluster import Cluster
from ds_train.plan.count import shape_of
from ds_train.plan.estimate import estimate
from ds_train.plan.loss_chunks import PASS_ROWS, SLAB_BYTES, SLAB_PADDING, slab_columns
from ds_train.plan.loss_memory import LossMemory, columns_at_once, loss_memory
from ds_train.plan.setting import Setting

WIDTH, VOCAB, RANK, LENGTH = 1536, 5000, 4, 512


@pytest.fixture
def setting(make: Callable[..., RunConfig]) -> Callable[..., Setting]:
    """A Llama with a wide head, on two processes of a CPU."""

    def build(rows: int = 2, preset: str = "zero2", **adapter: Any) -> Setting:
        sizes = {**sizes_of("llama", 2), "hidden_size": WIDTH, "vocab_size": VOCAB}
        raw = AutoConfig.for_model("llama", **sizes, tie_word_embeddings=False).to_dict()
        config = make(
            model={"name_or_path": "x", "dtype": "fp32"},
            adapter=adapter,
            data={"max_length": LENGTH},
            train={"per_device_train_batch_size": rows},
            engine={"preset": preset},
        )
        return estimate(config, shape_of(raw), Cluster("here", 1, 2, is_cpu=True)).setting

    return build


def lora(*targets: str) -> dict[str, Any]:
    return {"method": "lora", "r": RANK, "target_modules": list(targets)}


@pytest.mark.parametrize("rows", [2, 8, 9])
def test_a_frozen_head(setting: Callable[..., Setting], rows: int) -> None:
    one, tokens = setting(rows, **lora("q_proj")), rows * LENGTH
    at_once = tokens if tokens <= PASS_ROWS else tokens // 2
    assert columns_at_once(one) == 1024
    assert loss_memory(one) == LossMemory(
        chunk=4 * at_once * (1024 + SLAB_PADDING + WIDTH), gradients=4 * tokens * WIDTH
    )


def test_lora_on_the_head_makes_a_gradient_of_the_weight(setting: Callable[..., Setting]) -> None:
    """Of the weight with B beside it, which is copied for each call."""
    one, tokens, width = setting(**lora("q_proj", "lm_head")), 2 * LENGTH, WIDTH + RANK
    assert columns_at_once(one) == slab_columns(tokens, width, VOCAB, 4, None) == 1024
    weight, slab = 4 * VOCAB * width, max(SLAB_BYTES, 4 * tokens * (1024 + SLAB_PADDING))
    assert loss_memory(one) == LossMemory(weight + slab, gradients=4 * tokens * width + weight)


@pytest.mark.parametrize(
    ("preset", "adapter"),
    [
        ("zero3", lora("q_proj", "lm_head")),
        ("zero2", {**lora("q_proj", "lm_head"), "use_dora": True}),
        ("zero2", {"method": "ia3", "target_modules": ["k_proj", "lm_head"]}),
    ],
    ids=["zero3", "dora", "ia3"],
)
def test_a_head_whose_logits_all_stand(
    setting: Callable[..., Setting], preset: str, adapter: dict[str, Any]
) -> None:
    one = setting(preset=preset, **adapter)
    assert columns_at_once(one) is None
    assert loss_memory(one).chunk == 2 * LENGTH * VOCAB * 16
