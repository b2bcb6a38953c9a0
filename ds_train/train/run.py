"""A run that is ready to make its next step: everything that stays the same while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.config.adapter import VIRTUAL_TOKEN_METHODS
from ds_train.config.run import RunConfig
from ds_train.curriculum.report import Reporting
from ds_train.data.batch import Batch, eval_batches, step_batches
from ds_train.data.order import StepPlan
from ds_train.data.prepare import PreparedData
from ds_train.engine.engine import Engine
from ds_train.engine.ranks import Ranks
from ds_train.model.adapter import write_adapter
from ds_train.paths import RunPaths
from ds_train.plan.batch import BatchPlan


@dataclass(frozen=True)
class Run:
    """A run that is ready to make its next step."""

    config: RunConfig
    paths: RunPaths
    ranks: Ranks
    data: PreparedData
    plan: StepPlan
    batch: BatchPlan
    engine: Engine
    reporting: Reporting | None
    """Makes the report of a curriculum or a mixture; None without one."""
    start: CheckpointFacts
    """Where it begins: step 0, or the facts of the checkpoint it goes on from."""
    total_steps: int
    pad_token_id: int
    flatten: bool
    """The attention implementation wants documents one after another, without padding."""
    initial: dict[str, Tensor]
    """PiSSA's first A and B; empty otherwise."""

    def build_batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step."""
        return step_batches(
            self.data.train,
            self.plan.rows(step),
            rank=self.ranks.rank,
            dp_size=self.ranks.world_size,
            micro_batch_size=self.batch.micro_batch_size,
            packing=self.config.data.packing,
            **self.layout,
        )

    def build_validation(self) -> Iterator[Batch]:
        """This rank's share of the validation rows, one micro-batch after the other."""
        assert self.data.validation is not None
        train = self.config.train
        return eval_batches(
            self.data.validation,
            rank=self.ranks.rank,
            dp_size=self.ranks.world_size,
            micro_batch_size=train.per_device_eval_batch_size or train.per_device_train_batch_size,
            packing=self.config.data.packing,
            max_rows=self.config.evaluate.max_rows,
            **self.layout,
        )

    @property
    def layout(self) -> dict[str, Any]:
        """How `collate` is to lay out rows for this model."""
        return {
            "pad_token_id": self.pad_token_id,
            "flatten": self.flatten,
            "max_length": self.config.data.max_length,
            "with_positions": self.config.adapter.method not in VIRTUAL_TOKEN_METHODS,
        }

    @property
    def write_extra(self) -> Callable[[Path, dict[str, Tensor]], None] | None:
        """Writes the adapter in PEFT's format beside the state; None without an adapter."""
        model: Any = self.engine.module.model
        if not hasattr(model, "peft_config"):
            return None
        return lambda folder, trained: write_adapter(model, trained, self.initial, folder)
