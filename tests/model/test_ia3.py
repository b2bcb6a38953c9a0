"""An IA3 adapter on all linear layers is saved so that plain PEFT reads it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ds_train.config.adapter import AdapterConfig
from ds_train.model.adapter import choose_trainable, write_adapter
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
