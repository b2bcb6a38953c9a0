"""One recipe under one DeepSpeed preset on one cluster: memory, traffic, time, disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ds_train.config.engine import EngineConfig
from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError
from ds_train.plan.batch import batch_arithmetic
from ds_train.plan.cluster import Cluster
from ds_train.plan.compute import Compute, compute_of
from ds_train.plan.disk import checkpoint_bytes, disk_bytes
from ds_train.plan.ds_config import resolve_ds_config
from ds_train.plan.memory import Memory, memory_of
from ds_train.plan.rules_engine import offload_rules, zero_rules
from ds_train.plan.rules_sharing import heads_fault
from ds_train.plan.setting import Setting
from ds_train.plan.shapes import ModelShape
from ds_train.plan.trainable import Trainable, choose
from ds_train.plan.volume import Collective, collectives

PRESETS = (
    *("zero0", "zero1", "zero2", "zero2_offload_cpu"),
    *("zero3", "zero3_offload_cpu", "zero3_offload_nvme"),
)
"""What is compared, from the least traffic to the least memory."""
HOST_ADAM_SECONDS = 0.25e-9
"""Of an update on the host, a parameter of its node: an assumption."""
DEFAULT_UTILISATION = 0.4
"""Share of the peak that a step's arithmetic reaches; an assumption, `--utilisation` changes it."""


@dataclass(frozen=True)
class Estimate:
    """What a plan says of one setting."""

    setting: Setting
    utilisation: float

    @cached_property
    def memory(self) -> Memory:
        """Of one rank."""
        return memory_of(self.setting)

    @cached_property
    def collectives(self) -> list[Collective]:
        """Of one step."""
        return collectives(self.setting, self.memory.gathers)

    @cached_property
    def compute(self) -> Compute:
        """Of one step."""
        return compute_of(self.setting)

    @property
    def capacity(self) -> int | None:
        """Bytes that a rank may take of its device; None where that is not known."""
        cluster = self.setting.cluster
        if not cluster.is_cpu:
            return cluster.gpu_memory
        return None if cluster.host_memory is None else cluster.host_memory // cluster.gpus

    @property
    def host_bytes(self) -> int:
        """Of one node."""
        return self.memory.host * self.setting.cluster.gpus

    @property
    def fits(self) -> bool | None:
        """Device and host hold it; None where nobody has said how large they are."""
        if self.capacity is None:
            return None
        host = self.setting.cluster.host_memory
        return self.memory.peak <= self.capacity and (host is None or self.host_bytes <= host)

    @property
    def sent_bytes(self) -> int:
        """Of one rank in a step."""
        return sum(one.sent for one in self.collectives)

    @property
    def offload_bytes(self) -> int:
        """That one rank moves over the link to its host in a step: gradients out, weights back."""
        setting, moved = self.setting, 0
        trained = setting.trainable.num_trainable / setting.world_size
        if setting.offloads("optimizer") != "none":
            moved += round(trained * (4 + setting.width))
        if setting.offloads("param") != "none" and self.memory.gathers is not None:
            elements = self.memory.gathers.elements * setting.batch.accumulation_steps
            moved += round(elements * setting.width / setting.world_size)
        return moved

    @property
    def nvme_bytes(self) -> int:
        """That one node reads and writes in a step: masters and moments, both ways."""
        if self.setting.offloads("optimizer") != "nvme":
            return 0
        return 2 * 12 * self.setting.trainable.num_trainable // self.setting.cluster.nodes

    @property
    def communication_seconds(self) -> float | None:
        """All of it one after the other; None where a bandwidth is not known."""
        cluster, total = self.setting.cluster, 0.0
        for one in self.collectives:
            bandwidth = cluster.bandwidth(one.ranks)
            if bandwidth is None:
                return None
            total += one.seconds(bandwidth)
        if self.offload_bytes:
            if cluster.host_link is None:
                return None
            total += self.offload_bytes / cluster.host_link
        if self.setting.offloads("optimizer") != "none":
            total += HOST_ADAM_SECONDS * self.setting.trainable.num_trainable / cluster.nodes
        if self.nvme_bytes:
            if cluster.nvme is None:
                return None
            total += self.nvme_bytes / cluster.nvme
        return total

    @property
    def compute_seconds(self) -> float | None:
        """At the stated utilisation; None where the peak is not known."""
        return self.compute.seconds(self.setting, self.utilisation)

    @property
    def step_seconds(self) -> tuple[float, float] | None:
        """With all communication hidden behind arithmetic, and with none of it."""
        compute, communication = self.compute_seconds, self.communication_seconds
        if compute is None or communication is None:
            return None
        return max(compute, communication), compute + communication

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint."""
        return checkpoint_bytes(self.setting.config, self.setting.trainable)

    @property
    def disk_bytes(self) -> int:
        """All checkpoints at once, the one that is being written included."""
        return disk_bytes(self.setting.config, self.setting.trainable)


def estimate(
    config: RunConfig,
    shape: ModelShape,
    cluster: Cluster,
    utilisation: float = DEFAULT_UTILISATION,
    trainable: Trainable | None = None,
) -> Estimate:
    """Under the recipe's own engine section. Raises ConfigError for what can't run.

    `trainable`: what trains, where it is known already.
    """
    faults = [*zero_rules(config, cluster.world_size), *offload_rules(config)]
    if fault := heads_fault(shape.num_heads, config.engine.sequence_parallel_size):
        faults.append(fault)
    if faults:
        raise ConfigError(faults)
    batch = batch_arithmetic(config, cluster.world_size)
    ds_config = resolve_ds_config(config, batch)
    if trainable is None:
        trainable = choose(shape, config.adapter)
    return Estimate(Setting(config, ds_config, batch, trainable, cluster), utilisation)


def with_preset(config: RunConfig, preset: str) -> RunConfig:
    """The recipe under a preset, without the engine section's own changes."""
    overrides = {}
    if preset.endswith("nvme"):
        overrides = {"zero_optimization": {"offload_optimizer": {"nvme_path": "/nvme"}}}
    share = config.engine.sequence_parallel_size
    engine = EngineConfig(preset=preset, overrides=overrides, sequence_parallel_size=share)
    return config.model_copy(update={"engine": engine})
