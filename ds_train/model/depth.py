"""How deep in the model a parameter lies: what layer-wise rates and gradual unfreezing go by.

    0            embeddings (also where they are tied to the output layer: the weight is one)
    1 .. L       the layers, 1 being the one next to the embeddings
    L + 1        what comes after them: the last norm, the output layer

LoRA and IA3 parameters have the depth of the layer that they stand in.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ds_train.errors import ConfigError


class Depths:
    """Depth of each parameter of a model by its name in `model.named_parameters()`."""

    def __init__(self, model: nn.Module, *, config: Any, setting: str) -> None:
        """`config`: the architecture's; `setting`: the part of the recipe that asks.

        Raises:
            ConfigError: no list of modules is as long as the architecture says its layers are.
        """
        self.num_layers = int(config.get_text_config().num_hidden_layers)
        lists = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == self.num_layers
        ]
        if not lists:
            raise ConfigError(
                f"{setting}: {type(config).__name__} names {self.num_layers} layers, and the model "
                f"has no list of so many modules, so its layers can't be told; remove {setting}."
            )
        # lists inside a layer (experts, heads) can be as long as the list of layers around them
        self._layers = min(lists, key=lambda name: name.count("."))
        self._embeddings = tuple(
            f"{name.removesuffix('.base_layer')}."
            for name, module in model.named_modules()
            if isinstance(module, nn.Embedding)
        )

    def of(self, name: str) -> int:
        """Depth of a parameter, 0 to num_layers + 1."""
        inside = name.removeprefix(f"{self._layers}.")
        if inside != name:
            return int(inside.split(".", 1)[0]) + 1
        return 0 if name.startswith(self._embeddings) else self.num_layers + 1


def freeze_below(model: Any, frozen_layers: int | Literal["all"], *, tied: bool) -> None:
    """Let only what lies above so many layers train; `all`: what comes after the last layer.

    Embeddings are frozen, but where all layers are and the output layer's weight is theirs (`tied`)
    they train as the output layer.

    Raises ConfigError where the model has fewer layers.
    """
    setting = "adapter.frozen_layers"
    depths = Depths(model, config=model.config, setting=setting)
    num_layers = depths.num_layers
    frozen = num_layers if frozen_layers == "all" else frozen_layers
    if frozen > num_layers:
        raise ConfigError(
            f"{setting} = {frozen}: the model has {num_layers} layers; give at most so many."
        )
    for name, parameter in model.named_parameters():
        depth = depths.of(name)
        is_output = tied and frozen == num_layers and depth == 0
        parameter.requires_grad_(depth > frozen or is_output)


def lr_scale(depth: int, num_layers: int, decay: float) -> float:
    """Learning rate of a depth over that of the output layer: decay ** (layers above it).

    Layer-wise learning-rate decay as used for BERT-like models (Clark et al., ELECTRA, ICLR 2020,
    appendix A; Sun et al., arXiv 1905.05583, section 5.3); ULMFiT's discriminative fine-tuning
    (Howard and Ruder, ACL 2018, section 3.2) is decay = 1 / 2.6. The last layer has one layer of
    output above it, so that with L = 2 and decay = 0.5 embeddings, layers and output learn at
    0.125, 0.25, 0.5 and 1 times the rate.
    """
    return decay ** (num_layers + 1 - depth)


def unfreezing_stage(depth: int, num_layers: int, layers_at_once: int) -> int:
    """Stage of gradual unfreezing from which a depth trains; 0 from the start.

    From the top down (Howard and Ruder, ACL 2018, section 3.3): first what comes after the layers
    and the last `layers_at_once` of them, then so many more at each stage, the embeddings last.
    """
    if depth > num_layers:
        return 0
    if depth == 0:
        return num_stages(num_layers, layers_at_once) - 1
    return (num_layers - depth) // layers_at_once


def num_stages(num_layers: int, layers_at_once: int) -> int:
    """Stages of gradual unfreezing, the first and that of the embeddings included."""
    return (num_layers - 1) // layers_at_once + 2
