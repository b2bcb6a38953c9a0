"""LoRA on the experts of a mixture: PEFT 0.21 turns the names of their former linear layers around.

In transformers 5 the experts of a layer are one tensor, and the router is no linear layer. PEFT
takes `gate_proj`, `up_proj`, `down_proj` and `gate` (Mixtral: w1, w3, w2, gate), and `all-linear`,
for these tensors. Dense feed-forward layers of the same names are then not adapted.
"""

from __future__ import annotations

import re

from ds_train.config.adapter import AdapterConfig
from ds_train.plan.ia3_names import ends
from ds_train.plan.shapes import ModelShape

_PLAIN = {"gate": "gate", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
_PLAIN |= {"down_proj": "down_proj"}
_RENAMED: dict[str, dict[str, str]] = {
    "mixtral": {"gate": "gate", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"},
    "qwen3_moe": _PLAIN,
    "deepseek_v3": _PLAIN,
}
"""model_type -> former name -> the tensor of today."""


def without_experts(shape: ModelShape, wanted: str | list[str]) -> str | list[str]:
    """What is left of `target_modules` for linear layers, as endings of names."""
    renamed = _RENAMED.get(shape.model_type)
    if renamed is None:
        return wanted
    return [name for name in _leaves(shape, wanted) if not any(ends(name, old) for old in renamed)]


def expert_targets(shape: ModelShape, adapter: AdapterConfig) -> set[str]:
    """Tensors of today (`gate`, `gate_up_proj`, `down_proj`) that LoRA is put on."""
    renamed = _RENAMED.get(shape.model_type)
    if renamed is None or adapter.method != "lora":
        return set()
    named = _leaves(shape, adapter.target_modules or "all-linear")
    return {new for old, new in renamed.items() if any(ends(name, old) for name in named)}


def expert_ranks(shape: ModelShape, adapter: AdapterConfig) -> dict[str, int]:
    """Name of each router and experts' tensor with LoRA -> its rank (each expert's)."""
    targets = expert_targets(shape, adapter)
    ranks = {}
    for module in shape.modules:
        leaf = module.name.rsplit(".", 1)[-1]
        if module.kind in ("router", "experts") and leaf in targets:
            # two former layers in one tensor: PEFT doubles the rank
            ranks[module.name] = adapter.r * (2 if leaf == "gate_up_proj" else 1)
    return ranks


def _leaves(shape: ModelShape, wanted: str | list[str]) -> list[str]:
    """The endings that `target_modules` comes to: a pattern loses where it matched."""
    if not isinstance(wanted, str):
        return wanted
    renamed = _RENAMED[shape.model_type]
    output = shape.output
    linear = [one.name for one in shape.modules if one.is_linear and one is not output]
    if wanted.lower() == "all-linear":
        return sorted({name.rsplit(".", 1)[-1] for name in linear} | set(renamed))
    keys = [one.name for one in shape.modules] + [name for name, _ in shape.tensors]
    former = [
        one.name.rsplit(".", 1)[0] + "." + old
        for one in shape.modules
        for old, new in renamed.items()
        if one.kind == "experts" and one.name.endswith(new)
    ]
    return sorted({key.rsplit(".", 1)[-1] for key in keys + former if re.fullmatch(wanted, key)})
