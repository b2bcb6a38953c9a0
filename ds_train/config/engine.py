"""The `engine` section: how DeepSpeed shards and offloads."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from ds_train.config.base import Count, Section


class EngineConfig(Section):
    """A preset of ds_configs/, or the user's own DeepSpeed config, and changes to it."""

    preset: str | None = None
    """Name of a file of ds_configs/: zero0, zero1, zero2, zero3, zero3_offload_cpu, ..."""

    config: str | None = None
    """Path of your own ds_config.json; its "auto" values are filled from the recipe."""

    overrides: dict[str, Any] = {}
    """Raw DeepSpeed settings laid over the preset; unknown keys are refused at every level."""

    sequence_parallel_size: Count = 1
    """So many neighbouring ranks share each row, every one with its part of the positions; for
    rows too long for one device. Divides the number of processes and of attention heads."""

    @model_validator(mode="after")
    def _one_origin(self) -> EngineConfig:
        if self.preset is not None and self.config is not None:
            raise ValueError("give preset or config, not both")
        return self
