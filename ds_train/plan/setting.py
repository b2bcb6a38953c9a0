"""Everything that a plan's numbers depend on, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ds_train.config.adapter import VIRTUAL_TOKEN_METHODS
from ds_train.config.run import RunConfig
from ds_train.plan.batch import BatchPlan
from ds_train.plan.cluster import Cluster
from ds_train.plan.ds_config import use_coalesced_reduction
from ds_train.plan.trainable import Trainable

WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of an element."""


@dataclass(frozen=True)
class Setting:
    """A recipe on a cluster under one DeepSpeed config."""

    config: RunConfig
    ds_config: dict[str, Any]
    batch: BatchPlan
    trainable: Trainable
    cluster: Cluster

    @property
    def zero(self) -> dict[str, Any]:
        """The zero_optimization block."""
        block: dict[str, Any] = self.ds_config["zero_optimization"]
        return block

    @property
    def stage(self) -> int:
        """ZeRO stage."""
        return int(self.zero["stage"])

    @property
    def world_size(self) -> int:
        """Ranks."""
        return self.cluster.world_size

    @property
    def width(self) -> int:
        """Bytes of a weight in the model's dtype."""
        return WIDTH[self.config.model.dtype]

    @property
    def comm_width(self) -> int:
        """Bytes of a gradient on its way."""
        return WIDTH[self.ds_config["communication_data_type"]]

    @property
    def accumulation_width(self) -> int:
        """Bytes of a gradient that waits for others of the step."""
        return WIDTH[self.ds_config["data_types"]["grad_accum_dtype"]]

    @property
    def master_width(self) -> int:
        """Bytes of a weight that the optimizer updates."""
        return 2 if self.ds_config["bf16"].get("bf16_master_weights_and_grads") else 4

    @property
    def moment_width(self) -> int:
        """Bytes of an element of Adam's moments."""
        return 2 if self.ds_config["bf16"].get("bf16_optimizer_states") else 4

    @property
    def coalesces(self) -> bool:
        """Whether gradients are reduced once a step."""
        return use_coalesced_reduction(self.config, self.ds_config)

    @property
    def rows(self) -> int:
        """Of one micro-batch of one rank."""
        return self.batch.micro_batch_size

    @property
    def length(self) -> int:
        """Tokens of a row, virtual ones included; no row is longer."""
        adapter = self.config.adapter
        virtual = adapter.num_virtual_tokens if adapter.method in VIRTUAL_TOKEN_METHODS else 0
        return self.config.data.max_length + virtual

    @property
    def share(self) -> int:
        """Ranks that share each row."""
        return self.batch.sequence_parallel_size

    @property
    def tokens(self) -> int:
        """Of one micro-batch on one rank: its part of the rows."""
        return self.rows * -(-self.length // self.share)

    def offloads(self, what: str) -> str:
        """none, cpu or nvme, for `optimizer` or `param`."""
        return str((self.zero.get(f"offload_{what}") or {}).get("device", "none"))
