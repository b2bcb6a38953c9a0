"""Rates and beginnings by depth: layer-wise learning-rate decay and gradual unfreezing.

Which stage of unfreezing a step belongs to follows from where the step stands (steps, tokens or
epochs), so that a resumed run goes on with the same layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.config.run import RunConfig
from ds_train.config.train import UnfreezeConfig
from ds_train.model.depth import Depths, lr_scale, num_stages, unfreezing_stage
from ds_train.model.head import LanguageModel
from ds_train.model.parameter_groups import parameter_groups
from ds_train.train.due import Position
from ds_train.train.run import Run

Say = Callable[[str], Any]


def optimizer_groups(model: LanguageModel, config: RunConfig, say: Say) -> list[dict[str, Any]]:
    """Parameter groups as the recipe's decay, rates by depth and unfreezing want them.

    Raises ConfigError where depths are asked for and the model's layers can't be told.
    """
    train, rates, stages = config.train, {}, {}
    decay, unfreeze = train.layer_lr_decay, train.unfreeze
    if decay is not None or unfreeze is not None:
        setting = "train.unfreeze" if decay is None else "train.layer_lr_decay"
        depths = Depths(model, config=model.model.config, setting=setting)
        depth_of = {name: depths.of(name) for name, one in model.named_parameters()}
        if decay is not None:
            rates = {k: lr_scale(d, depths.num_layers, decay) for k, d in depth_of.items()}
            say(
                f"layers: {depths.num_layers}; the output layer learns at the full rate, the "
                f"embeddings at {lr_scale(0, depths.num_layers, decay):.2g} of it"
            )
        if unfreeze is not None:
            at_once = unfreeze.layers
            stages = {
                k: unfreezing_stage(d, depths.num_layers, at_once) for k, d in depth_of.items()
            }
            say(
                f"unfreezing: {at_once} of {depths.num_layers} layers train from the start, "
                f"{at_once} more every {unfreeze.every}, the embeddings from stage "
                f"{num_stages(depths.num_layers, at_once) - 1} on"
            )
    return parameter_groups(
        model,
        weight_decay=train.weight_decay,
        lora_plus_lr_ratio=config.adapter.lora_plus_lr_ratio,
        rate_of=lambda name: rates.get(name, 1.0),
        stage_of=lambda name: stages.get(name, 0),
    )


def join_layers(run: Run, facts: CheckpointFacts, position: Position, say: Say) -> CheckpointFacts:
    """Let the layers train that join at a step; the facts know how many updates were made then."""
    joined, engine = facts.joined_at, run.engine
    stage = min(stage_at(run.config.train.unfreeze, position), engine.last_stage)
    if stage <= len(joined):
        return facts
    updates = [engine.num_updates] * (stage - len(joined))
    engine.thaw(stage)
    say(f"unfreezing: stage {stage} trains from step {position.step + 1:,} on")
    return replace(facts, joined_at=[*joined, *updates])


def stage_at(unfreeze: UnfreezeConfig | None, position: Position) -> int:
    """Stage of unfreezing of the step that begins at a position; 0 is that of the first step."""
    if unfreeze is None:
        return 0
    every = unfreeze.every
    # an epoch is a sum of fractions, and may come out a hair short
    mark = {
        "steps": position.step,
        "tokens": position.tokens,
        "epochs": position.epoch + 1e-9,
    }[every.unit]
    return int(mark // every.amount)
