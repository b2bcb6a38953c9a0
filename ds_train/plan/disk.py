"""What checkpoints take on the disk: one of them, and all that a run holds at once."""

from __future__ import annotations

from ds_train.config.run import RunConfig
from ds_train.plan.trainable import Trainable


def checkpoint_bytes(config: RunConfig, trainable: Trainable) -> int:
    """fp32 weights and optimizer state of what trains; an adapter beside it, for PEFT."""
    has_adapter = config.adapter.method not in ("full", "partial")
    return state_bytes(config, trainable) + 4 * trainable.num_trainable * has_adapter


def state_bytes(config: RunConfig, trainable: Trainable) -> int:
    """fp32 weights and optimizer state of what trains, of all ranks together."""
    trained = trainable.num_trainable
    if config.train.optim == "adafactor":
        states = sum(
            sum(one.shape) if len(one.shape) > 1 else one.num_elements for one in trainable.trained
        )
    else:
        states = 2 * trained
    return 4 * (trained + states)


def checkpoints_held(config: RunConfig, *, is_evaluated: bool = True) -> int:
    """How many a run holds at most between two saves; while it saves there is one more.

    Args:
        is_evaluated: there is held-out data, so that one of them can be the best.
    """
    checkpoint = config.checkpoint
    has_best = checkpoint.best and is_evaluated
    saves_often = checkpoint.every is not None or (has_best and config.evaluate.every is not None)
    return (checkpoint.keep if saves_often else 1) + has_best


def disk_bytes(config: RunConfig, trainable: Trainable) -> int:
    """All checkpoints that a run holds at once, the one that is being written included."""
    return checkpoint_bytes(config, trainable) * (checkpoints_held(config) + 1)
