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
    """Keep the checkpoint with the lowest validation loss."""
