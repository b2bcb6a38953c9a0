"""The `checkpoint` section: when the trainable state is saved, and what is kept."""

from __future__ import annotations

from ds_train.config.base import Count, Section, Span


class CheckpointConfig(Section):
    """Checkpoints hold what trains and its optimizer state, never the frozen base."""

    every: Span | None = None
    """How often; only at the end when left out."""

    keep: Count = 2
    """How many of the latest to keep; the best one is kept beside them."""

    best: bool = True
    """Keep the best checkpoint: lowest validation loss, or `train.early_stopping.metric`."""

    rehearse: bool = True
    """Before the first step write a checkpoint, read it again, compare it, see whether the disk has
    room for those to come, and remove it."""

    background: bool = False
    """Write the checkpoints that `every` asks for while the run goes on. The state is copied to the
    host's memory (12 bytes a parameter that trains, dealt over the ranks) beside the forward and
    backward passes that follow; only the update after them waits, should the copy not be complete.
    The best one and the last one are waited for."""
