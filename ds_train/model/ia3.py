"""Which layers IA3 scales, read off the model's own modules instead of a table of architectures.

IA3 learns three vectors a block (Liu et al. 2022, arXiv 2205.05638, section 3.3): on the keys, on
the values, and on the input of the feed-forward's second layer. PEFT's table names the queries
instead of the keys for several architectures (Qwen 2 and 3, Gemma, Phi, Llama 4), and knows
nothing of others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from ds_train.config.adapter import AdapterConfig
from ds_train.errors import ConfigError
from ds_train.plan.ia3_names import FUSED, SECOND_LAYERS, attention_names, ends, present


@dataclass(frozen=True)
class IA3Targets:
    """Names of modules, as PEFT takes them: the whole name's end."""

    target_modules: str | list[str]
    feedforward_modules: list[str]
    """Those whose input is scaled."""
    remark: str
    """What is scaled and what can't be, for people."""


def choose_ia3(model: nn.Module, config: AdapterConfig) -> IA3Targets:
    """What the recipe names; what it leaves out is read off the model.

    Raises:
        ConfigError: target_modules are left out, and the architecture is not known.
    """
    if config.target_modules is None:
        found = ia3_targets(model)
        return replace(
            found, feedforward_modules=config.feedforward_modules or found.feedforward_modules
        )
    second = config.feedforward_modules
    if second is None:
        second = second_layers(model, config.target_modules)
    return IA3Targets(config.target_modules, second, "scales what adapter.target_modules names")


def ia3_targets(model: nn.Module) -> IA3Targets:
    """Keys, values and second feed-forward layers of a decoder.

    Raises:
        ConfigError: its attention is built of layers with other names.
    """
    names = [name for name, one in model.named_modules() if isinstance(one, nn.Linear | Conv1D)]
    attention = attention_names(names)
    second = present(SECOND_LAYERS, names)
    if not attention:
        known = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise ConfigError(
            "adapter.target_modules: keys and values of this architecture have names that are not "
            f"known; its linear layers are {', '.join(known)}. Name those to scale in "
            "adapter.target_modules, and of these the second feed-forward layers in "
            "adapter.feedforward_modules."
        )
    return IA3Targets(attention + second, second, _describe(model, attention, second))


def second_layers(model: nn.Module, targets: str | list[str]) -> list[str]:
    """Those of the chosen `targets` that are second feed-forward layers, as they are named there.

    A regular expression (or `all-linear`) may reach all of them.
    """
    if isinstance(targets, str):
        return present(SECOND_LAYERS, [name for name, _ in model.named_modules()])
    return [one for one in targets if any(ends(one, second) for second in SECOND_LAYERS)]


def _describe(model: nn.Module, attention: list[str], second: list[str]) -> str:
    parts = [f"scales {', '.join(attention + second)}"]
    fused = [one for one in attention if one in FUSED]
    parts += [f"{one} holds {FUSED[one]}, and all of it is scaled" for one in fused]
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    experts = any(getattr(text, key, None) for key in ("num_local_experts", "num_experts"))
    if experts or getattr(text, "n_routed_experts", None):
        parts.append("routed experts are no linear layers here and stay as they are")
    elif not second:
        parts.append("no second feed-forward layer was found")
    return "; ".join(parts)
