"""What autograd really keeps for the backward pass, against the plan's count."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ds_train.config.adapter import AdapterConfig
from ds_train.config.run import RunConfig
from ds_train.data.batch import Batch
from ds_train.data.slice import slice_batch
from ds_train.model.adapter import choose_trainable
from ds_train.model.head import LanguageModel
from ds_train.model.shared_rows import share_rows
from ds_train.plan.activations import activations
from ds_train.plan.count import shape_of
from ds_train.plan.trainable import choose

ROWS, LENGTH = 2, 64
NOBODY: Any = np.empty(0, dtype=np.int64)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 101,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 0,
    "num_key_value_heads": 8,
}
OWN = {"mixtral": {"num_local_experts": 4}, "deepseek_v3": DEEPSEEK}
GPT2 = {"n_embd": 64, "n_head": 8, "n_positions": 128, "vocab_size": 101}
EXACT = ("llama", "qwen2", "qwen3", "olmo2", "smollm3", "gemma3_text", "gemma2", "gpt_neox", "phi")
CASES = [
    *((name, "full", "bf16", 0.005) for name in EXACT),
    *((name, "lora", "fp32", 0.005) for name in EXACT),
    *((name, "ia3", "bf16", 0.02) for name in ("llama", "qwen3", "gemma2", "phi")),
    *((name, "lora", "bf16", 0.06) for name in ("phi3", "mixtral", "deepseek_v3", "gpt2")),
]


def sizes_of(model_type: str, num_layers: int) -> dict[str, Any]:
    """Settings of a tiny model."""
    if model_type == "gpt2":
        return {**GPT2, "n_layer": num_layers}
    return {**SIZES, **OWN.get(model_type, {}), "num_hidden_layers": num_layers}


def kept_bytes(
    model_type: str, num_layers: int, method: str, dtype: str, recompute: bool, share: int = 1
) -> int:
    """Of all tensors that a forward pass saves, parameters left out, each storage once.

    With `share` on the first of so many ranks that hold each row; what the others would send does
    not matter here.
    """
    sizes = sizes_of(model_type, num_layers)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))
    model = model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    model = choose_trainable(model, AdapterConfig(method=method, r=4), base="x", seed=0)
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    shared = None
    if share > 1:
        shared = share_rows(model, share, lambda received, sent: received.copy_(sent))
    parameters = {one.untyped_storage().data_ptr() for one in model.parameters()}
    saved: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(3, 100, (ROWS, LENGTH))
    positions = (torch.arange(LENGTH) % (LENGTH // 2))[None].expand(ROWS, -1).contiguous()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one))
        batch = Batch(ids, ids, positions, NOBODY, NOBODY, ROWS, ids.numel())
        if shared is not None:
            batch = slice_batch(batch, 0, share)
            shared.rows = batch.whole
        LanguageModel(model).train()(
            batch.input_ids, batch.labels, batch.position_ids, batch.num_supervised
        )
    return sum(saved.values())


def planned(
    make: Callable[..., RunConfig],
    model_type: str,
    num_layers: int,
    method: str,
    dtype: str,
    share: int = 1,
) -> Any:
    raw = AutoConfig.for_model(model_type, **sizes_of(model_type, num_layers)).to_dict()
    adapter = {"method": method, **({"r": 4} if method == "lora" else {})}
    config = make(
        model={"name_or_path": "x", "dtype": dtype},
        adapter=adapter,
        engine={"sequence_parallel_size": share},
    )
    return activations(choose(shape_of(raw), config.adapter), config, ROWS, LENGTH, on_cpu=True)


@pytest.mark.parametrize(("model_type", "method", "dtype", "error"), CASES)
def test_what_a_layer_keeps(
    make: Callable[..., RunConfig], model_type: str, method: str, dtype: str, error: float
) -> None:
    real = [kept_bytes(model_type, layers, method, dtype, False) for layers in (2, 3)]
    plan = [planned(make, model_type, layers, method, dtype).all_layers for layers in (2, 3)]
    assert plan[1] - plan[0] == pytest.approx(real[1] - real[0], rel=error)


@pytest.mark.parametrize(
    ("model_type", "method", "error"),
    [("llama", "full", 0.01), ("llama", "lora", 0.01), ("qwen3", "full", 0.01)],
)
def test_what_a_layer_keeps_of_shared_rows(
    make: Callable[..., RunConfig], model_type: str, method: str, error: float
) -> None:
    real = [kept_bytes(model_type, layers, method, "bf16", False, share=2) for layers in (2, 3)]
    plan = [planned(make, model_type, layers, method, "bf16", 2).all_layers for layers in (2, 3)]
    assert plan[1] - plan[0] == pytest.approx(real[1] - real[0], rel=error)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointing_keeps_the_inputs_of_layers(
    make: Callable[..., RunConfig], method: str
) -> None:
    real = [kept_bytes("llama", layers, method, "bf16", True) for layers in (2, 3)]
    plan = [planned(make, "llama", layers, method, "bf16").layer_inputs for layers in (2, 3)]
    assert plan[1] - plan[0] == real[1] - real[0]
