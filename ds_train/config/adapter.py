"""The `adapter` section: which parameters train.

One section for every kind of transfer: PEFT adapters, a part of the model, all of it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ds_train.config.base import Count, Natural, Section, UserPath

Method = Literal["lora", "ia3", "prompt_tuning", "prefix_tuning", "partial", "full"]
VIRTUAL_TOKEN_METHODS = ("prompt_tuning", "prefix_tuning")
"""Those that put learned tokens before every row."""


class AdapterConfig(Section):
    """Which parameters train, and how they are parametrised. Names follow PEFT."""

    method: Method = "lora"
    """`lora`, `ia3`, `prompt_tuning`, `prefix_tuning`, `partial` (by regex) or `full`."""

    r: Count = 8
    """Rank of the LoRA matrices."""

    alpha: Annotated[float, Field(gt=0)] = 16
    """LoRA scale: the update is alpha / r x B A (alpha / sqrt(r) with use_rslora)."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the adapter."""

    target_modules: str | list[str] | None = None
    """`all-linear`, a list of module names, or one regex. Left out: all linear layers for LoRA;
    keys, values and the second feed-forward layers for IA3."""

    feedforward_modules: list[str] | None = None
    """IA3: target modules that scale their input, not their output; found by name if left out."""

    exclude_modules: str | list[str] | None = None
    """Module names or a regex that are never adapted."""

    modules_to_save: list[str] = []
    """Modules trained whole beside the adapter, e.g. `lm_head` or `embed_tokens`."""

    use_dora: bool = False
    """Weight-decomposed LoRA (DoRA, arXiv 2402.09353)."""

    use_rslora: bool = False
    """Rank-stabilised scale alpha / sqrt(r) (arXiv 2312.03732)."""

    init: Literal["default", "gaussian", "pissa"] = "default"
    """Start of the LoRA matrices; `pissa` takes principal components (arXiv 2404.02948)."""

    lora_plus_lr_ratio: Annotated[float, Field(gt=0)] | None = None
    """LoRA+ (arXiv 2402.12354): learning rate of B over that of A."""

    num_virtual_tokens: Count = 20
    """Length of the learned prompt or prefix."""

    prompt_init_text: str | None = None
    """Prompt tuning: start from the embeddings of this text instead of random ones."""

    frozen_layers: Natural | Literal["all"] | None = None
    """`partial`: so many layers from the bottom stay frozen, and the embeddings with them; `all`
    trains the last norm and the output layer only (with the embeddings where they are one)."""

    trainable: list[str] = []
    """`partial`: regular expressions; a parameter trains when one is found in its name."""

    path: UserPath | None = None
    """Continue from this PEFT adapter folder; its own settings replace the ones here."""
