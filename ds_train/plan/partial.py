"""`adapter.method: partial`: which parameters train, by pattern or by the number of frozen layers.

As `model/adapter.py` and `model/depth.py` choose them on the model itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ds_train.config.adapter import AdapterConfig
from ds_train.errors import ConfigError
from ds_train.plan.shapes import ModelShape, Module

Trains = Callable[[str, Module], bool]
"""Name and module of a parameter -> whether it trains."""


def partial_rule(shape: ModelShape, adapter: AdapterConfig) -> Trains:
    """Whether a parameter of that name and module trains; ConfigError where none would."""
    if adapter.frozen_layers is None:
        patterns = [re.compile(text) for text in adapter.trainable]
        names = [name for name, _ in shape.tensors]
        if not any(one.search(name) for one in patterns for name in names):
            raise ConfigError(
                f"adapter.trainable = {adapter.trainable!r}: no parameter name matches; the "
                f"model's are like {names[0]} and {names[-1]}."
            )
        return lambda name, module: any(one.search(name) for one in patterns)
    layers = shape.num_layers
    frozen = layers if adapter.frozen_layers == "all" else adapter.frozen_layers
    if frozen > layers:
        raise ConfigError(
            f"adapter.frozen_layers = {frozen}: the model has {layers} layers; give at most so "
            "many."
        )

    def trains(name: str, module: Module) -> bool:
        if module.kind == "embedding":
            return shape.tied and frozen == layers
        depth = layers + 1 if module.layer is None else module.layer + 1
        return depth > frozen

    return trains
