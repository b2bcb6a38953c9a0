"""The `transfer` section: what `ds-train transfer` measures about what pretraining is worth.

Arms (ways to train on the target data, one of them from random weights) x sizes of the target data
x seeds x learning rates. `ds-train train` ignores it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ds_train.config.base import ByteCount, Count, Natural, Section
from ds_train.config.data import SourceConfig

WARM, RANDOM = "warm", "random"
BUILT_IN = (WARM, RANDOM, "lora", "ia3", "head", "replay", "l2_sp")
_FROZEN = re.compile(r"frozen-(\d+)")

_FIXED = {
    "output_dir": "each run has a folder of its own",
    "train.seed": "transfer.seeds says it for all arms",
    "data.limit": "transfer.sizes says it for all arms",
    "data.validation": "all arms are measured on the same text",
    "data.dev": "all arms are chosen on the same text",
    "compare": "it holds for all arms",
    "transfer": "it holds for all arms",
}


def frozen_layers(arm: str) -> int | None:
    """Layers that stay frozen in the built-in arm `frozen-2`; None for any other name."""
    match = _FROZEN.fullmatch(arm)
    return None if match is None else int(match[1])


class ReplayConfig(Section):
    """Text of the source domain that is trained on beside the target, against forgetting."""

    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    """Where it comes from; none of it may be measured as `transfer.source`."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Its share of the tokens."""


def _arms(value: Any) -> Any:
    """A list of built-in arms stands for the arms without settings of their own."""
    if isinstance(value, list):
        return {name: {} for name in value}
    if not isinstance(value, dict):
        return value
    return {name: {} if changes is None else changes for name, changes in value.items()}


class TransferConfig(Section):
    """Arms x sizes of the target data x seeds, each at its best learning rate on dev."""

    arms: Annotated[dict[str, dict[str, Any]], BeforeValidator(_arms)] = {WARM: {}, RANDOM: {}}
    """Ways to train: `warm` (all weights, from the pretrained ones), `random` (the same
    architecture, from random ones), `lora`, `ia3`, `head` (output layer only), `frozen-2` (without
    the embeddings and two layers), `replay`, `l2_sp`, or a name of your own with the settings that
    it lays over the recipe."""

    sizes: list[ByteCount] = []
    """Bytes of target text, e.g. [20 kB, 100 kB], the smaller within the larger; all of it when
    left out."""

    samples: list[Count] = []
    """The same in documents or examples instead of bytes."""

    random_sizes: list[ByteCount] = []
    """Further sizes for the arm `random` alone: with how much data it gets where transfer does."""

    seeds: list[Natural] = [0, 1, 2]
    """train.seed of each repetition."""

    learning_rates: list[float] | dict[str, list[float]] | None = None
    """Tried for each arm, or by arm (`warm`), or by arm and size (`warm-20kB`); the best one on
    data.dev is taken, for each size anew."""

    rate_seeds: Count | None = None
    """Learning rates are tried on the first so many seeds, and the others train at what was best on
    these; on all seeds when left out."""

    reach: Annotated[float, Field(gt=0)] | None = None
    """Bits per byte on data.dev that arms are timed to; where the arm `random` ends at the same
    size when left out."""

    source: list[SourceConfig] = []
    """Held-out text of what the model was pretrained on: measured before and after (forgetting)."""

    replay: ReplayConfig | None = None
    """Text that the arm `replay` mixes in."""

    l2_sp: Annotated[float, Field(gt=0)] | None = None
    """train.l2_sp of the arm `l2_sp`."""

    parallel: Count | None = None
    """Runs at once; as many as cores (or GPUs) are there for when left out."""

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not arms:
            raise ValueError(f"is empty; name some of {', '.join(BUILT_IN)}, frozen-2")
        for name, changes in arms.items():
            known = name in BUILT_IN or frozen_layers(name) is not None
            if not known and not changes:
                raise ValueError(
                    f"{name} is none of {', '.join(BUILT_IN)}, frozen-2, and has no settings; give "
                    f"it some, e.g. {{{name}: {{train.unfreeze: {{every: 1 epoch}}}}}}"
                )
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise ValueError(
                    f'the name "{name}" becomes a folder; use letters, digits, and _ . + - inside'
                )
            for key in changes:
                for fixed in {key, key.split(".")[0], ".".join(key.split(".")[:2])} & set(_FIXED):
                    raise ValueError(f"arm {name} sets {key}, which no arm can: {_FIXED[fixed]}")
        return arms

    @model_validator(mode="after")
    def _fits(self) -> TransferConfig:
        if self.sizes and self.samples:
            raise ValueError("give sizes or samples, not both")
        return self
