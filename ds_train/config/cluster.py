"""The `cluster` section: on which processes and nodes the deepspeed launcher starts the run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ds_train.config.base import Count, Section


class ClusterConfig(Section):
    """What the deepspeed launcher is told."""

    processes_per_node: Count | None = None
    """Ranks on each node; one per GPU when left out, one on a machine without."""

    hostfile: str | None = None
    """Lines `host slots=N`; several nodes when given."""

    master_port: Annotated[int, Field(ge=1024, le=65535)] | None = None
    """Port of rank 0; a free one when left out."""
