"""The `report` section: what is shown while a run goes on, and who else reads its records."""

from __future__ import annotations

from typing import Literal

from ds_train.config.base import Count, Natural, Section


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

    communication_every: Natural = 100
    """At least so many steps lie between two whose collectives are counted, bytes and time; more
    where they would cost 1 % of the run. 0: communication is not watched at all."""

    cluster: str | None = None
    """A cluster of ds_configs/clusters/, or a file like these: what predicts the seconds of
    communication that are recorded beside the measured ones."""
