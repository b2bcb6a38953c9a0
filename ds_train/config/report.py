"""The `report` section: what is shown while a run goes on, and who else reads its records."""

from __future__ import annotations

from typing import Literal

from ds_train.config.base import Count, Section


class ReportConfig(Section):
    """metrics.jsonl is always written; trackers read the same records."""

    progress: Literal["auto", "bar", "plain", "none"] = "auto"
    """`auto`: a bar in a terminal, plain lines elsewhere."""

    log_every: Count = 10
    """Steps between plain lines."""

    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    """Other readers of the same records; each needs its package installed."""

    project: str = "ds-train"
    """Project name for wandb and mlflow."""

    run_name: str | None = None
    """Name of the run for trackers; the output folder's name when left out."""
