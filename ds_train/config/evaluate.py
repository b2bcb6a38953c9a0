"""The `evaluate` section: when the validation loss is measured."""

from __future__ import annotations

from ds_train.config.base import Count, Section, Span


class EvaluateConfig(Section):
    """Evaluation on data.validation during the run."""

    every: Span | None = None
    """How often; only at the end when left out."""

    at_start: bool = False
    """Also before the first step."""

    max_rows: Count | None = None
    """Evaluate on the first so many rows only."""

    rank_classification: bool = False
    """Score the candidate answers of data.validation: the share of examples where the right one is
    the most likely."""
