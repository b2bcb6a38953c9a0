"""Run folders made without training, in the layout that a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ds_train.paths import RunPaths


def make_run(root: Path, base: Path, method: str = "lora", **sections: Any) -> RunPaths:
    """Recipe of a run on `base`; no checkpoint yet."""
    root.mkdir(parents=True)
    recipe: dict[str, Any] = {
        "output_dir": str(root),
        "model": {"name_or_path": str(base), "dtype": "fp32"},
        "adapter": {"method": method, **({"trainable": ["."]} if method == "partial" else {})},
        "data": {"train": [{"path": "train.jsonl", "format": "prompt_completion"}]},
        "train": {"max_steps": 1},
    }
    for name, section in sections.items():
        recipe[name] = {**recipe.get(name, {}), **section}
    paths = RunPaths(root)
    paths.recipe.write_text(yaml.safe_dump(recipe))
    return paths


def add_checkpoint(paths: RunPaths, step: int, state: dict[str, Tensor]) -> Path:
    """A complete checkpoint with these parameters, dealt over two files as by two ranks."""
    folder = paths.checkpoint(step)
    (folder / "state").mkdir(parents=True, exist_ok=True)
    names = sorted(state)
    files = ["rank-00000.safetensors", "rank-00001.safetensors"]
    for rank, file in enumerate(files):
        tensors = {}
        for name in names[rank::2]:
            tensors[f"{name}|param"] = state[name].detach().float().contiguous()
            tensors[f"{name}|exp_avg"] = torch.ones_like(tensors[f"{name}|param"])
        save_file(tensors, str(folder / "state" / file), metadata={"format": "pt"})
    facts = {"step": step, "num_updates": step, "total_tokens": 0, "best_loss": None}
    facts |= {"base_fingerprint": "", "data_fingerprint": "", "state_files": files}
    (folder / "checkpoint.json").write_text(json.dumps(facts))
    (paths.checkpoints / "latest").write_text(folder.name + "\n")
    return folder


def random_adapter(base: Path, config: PeftConfig, seed: int = 1) -> nn.Module:
    """PEFT over the base with every adapter tensor random: an adapter that changes something."""
    model: Any = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    config.base_model_name_or_path = str(base)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return adapted.eval()


def adapter_run(root: Path, base: Path, config: PeftConfig, **sections: Any) -> tuple[Any, Any]:
    """A run with one checkpoint of a random adapter; returns (paths, adapted model)."""
    method = {"LORA": "lora", "IA3": "ia3", "PROMPT_TUNING": "prompt_tuning"}
    kind = method.get(str(config.peft_type.value), "prefix_tuning")
    paths = make_run(root, base, kind, **sections)
    adapted: Any = random_adapter(base, config)
    folder = add_checkpoint(paths, 50, {})
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return paths, adapted
