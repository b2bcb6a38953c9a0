"""IA3 starts as the base to the bit, merges into it, and plain PEFT reads back what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ds_train.config.adapter import AdapterConfig
from ds_train.model.adapter import choose_trainable
from ds_train.model.adapter_files import write_adapter
from ds_train.model.tiny import save_tiny, tiny_model


def test_all_linear_is_saved_and_read_back(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    config = AdapterConfig(method="ia3", target_modules="all-linear")
    adapted: Any = choose_trainable(tiny_model("llama"), config, base=str(base), seed=0)
    trained = {}
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
                trained[name] = parameter.detach()
    write_adapter(adapted, trained, {}, tmp_path)
    plain: Any = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    read = PeftModel.from_pretrained(plain, str(tmp_path))
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        assert torch.equal(read(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits)
    # q k v o gate up scale their output, down its input: 64 + 32 + 32 + 64 + 96 + 96 + 96, 2 layers
    assert sum(tensor.numel() for tensor in trained.values()) == 2 * 480


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "phi"])
def test_it_starts_as_the_base_to_the_bit(family: str, dtype: torch.dtype) -> None:
    ids = torch.arange(3, 43)[None]
    model = tiny_model(family).to(dtype).eval()
    with torch.no_grad():
        before = model(input_ids=ids).logits
        adapted = choose_trainable(model, AdapterConfig(method="ia3"), base="base", seed=0)
        assert torch.equal(adapted.eval()(input_ids=ids).logits, before)


def test_a_real_model_starts_as_it_was(stories260k: Path) -> None:
    ids = torch.arange(3, 43)[None]
    model: Any = AutoModelForCausalLM.from_pretrained(str(stories260k), dtype=torch.float32)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        adapted: Any = choose_trainable(model, AdapterConfig(method="ia3"), base="base", seed=0)
        assert torch.equal(adapted(input_ids=ids).logits, before)
    trained = [one for one in adapted.parameters() if one.requires_grad]
    assert sum(one.numel() for one in trained) == 5 * (32 + 32 + 172)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "phi"])
def test_merged_equals_unmerged(family: str) -> None:
    ids = torch.arange(3, 43)[None]
    adapted: Any = choose_trainable(
        tiny_model(family), AdapterConfig(method="ia3"), base="base", seed=0
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
        expected = adapted.eval()(input_ids=ids).logits
        merged = adapted.merge_and_unload()(input_ids=ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(merged, tiny_model(family)(input_ids=ids).logits)
