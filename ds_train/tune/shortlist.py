"""What is worth trying, by the plan: settings that fit, the likely quickest first.

Offloading is tried only where nothing else fits, and ZeRO 0 only where the recipe has it: it adds
gradients up in the model's dtype. Where the size of the device is not known nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ds_train.config.run import RunConfig
from ds_train.errors import InputError
from ds_train.plan.batch import BatchPlan
from ds_train.plan.cluster import Cluster
from ds_train.plan.estimate import PRESETS, Estimate, estimate
from ds_train.plan.rules import check_rules
from ds_train.plan.shapes import ModelShape
from ds_train.plan.trainable import Trainable, choose
from ds_train.tune.choice import Choice, apply, current, micro_batch_sizes


@dataclass(frozen=True)
class Candidate:
    """A choice and what the plan says of it; None of an engine section that it can't read."""

    choice: Choice
    plan: Estimate | None

    @property
    def seconds(self) -> float:
        """Of a step, with no communication hidden; infinite where that is not known."""
        known = None if self.plan is None else self.plan.step_seconds
        return float("inf") if known is None else known[1]


class Shortlist:
    """Candidates of one recipe on one cluster."""

    def __init__(
        self, config: RunConfig, shape: ModelShape, cluster: Cluster, batch: BatchPlan
    ) -> None:
        self.config, self.batch = config, batch
        self.sizes = micro_batch_sizes(batch)
        self._shape, self._cluster = shape, cluster
        self._trainable: Trainable = choose(shape, config.adapter)

    def plan_of(self, choice: Choice) -> Estimate | None:
        """The estimate of a choice; None where the recipe can't run under it."""
        changed = apply(self.config, choice, self.batch)
        try:
            if check_rules(changed, self._cluster.world_size):
                return None
            return estimate(changed, self._shape, self._cluster, trainable=self._trainable)
        except InputError:
            return None

    def candidates(self) -> list[Candidate]:
        """Of each preset, with and without checkpointing, the largest micro-batch that fits; the
        recipe's own choice is not among them."""
        now, found = current(self.config), []
        for preset in self._presets():
            largest = 0
            for recompute in (False, True):
                candidate = self._largest(preset, recompute)
                # recomputing costs a third of the arithmetic: only for what has no room otherwise
                if candidate is not None and candidate.choice.micro_batch_size > largest:
                    largest = candidate.choice.micro_batch_size
                    if candidate.choice != now:
                        found.append(candidate)
        return sorted(found, key=lambda one: one.seconds)

    def _presets(self) -> list[str | None]:
        now = current(self.config).preset
        if now is None:
            return [None]
        plain = [name for name in PRESETS if "offload" not in name and name != "zero0"]
        if now not in plain:
            plain.insert(0, now)
        fitting = [name for name in plain if self._largest(name, True) is not None]
        if self._cluster.world_size == 1:
            fitting = fitting[:1]  # the stages differ in nothing but their buffers
        if fitting:
            return list(fitting)
        for name in PRESETS:
            if name.endswith("offload_cpu") and self._largest(name, True) is not None:
                return [name]
        return []

    def _largest(self, preset: str | None, recompute: bool) -> Candidate | None:
        """The largest micro-batch that fits; the recipe's own where nothing says what does."""
        for size in reversed(self.sizes):
            choice = Choice(preset, size, recompute)
            plan = self.plan_of(choice)
            if plan is None:
                continue
            if plan.fits:
                return Candidate(choice, plan)
            if plan.fits is None and size <= current(self.config).micro_batch_size:
                return Candidate(choice, plan)
        return None

    def smaller(self, choice: Choice) -> int | None:
        """The next smaller micro-batch."""
        return max((one for one in self.sizes if one < choice.micro_batch_size), default=None)

    def larger(self, choice: Choice) -> int | None:
        """The next larger micro-batch, if the plan does not say that it can't fit."""
        size = min((one for one in self.sizes if one > choice.micro_batch_size), default=None)
        if size is None:
            return None
        plan = self.plan_of(Choice(choice.preset, size, choice.recompute, choice.buckets))
        return None if plan is None or plan.fits is False else size

    def bucket_sizes(self, choice: Choice) -> Iterator[tuple[str, int]]:
        """Bucket keys of the choice's stage, each with a quarter and four times its size."""
        plan = self.plan_of(choice)
        if plan is None:
            return
        keys = {
            1: ("allgather_bucket_size",),
            2: ("reduce_bucket_size", "allgather_bucket_size"),
            3: ("stage3_prefetch_bucket_size", "reduce_bucket_size"),
        }
        if self._cluster.world_size == 1:
            return
        for key in keys.get(plan.setting.stage, ()):
            size = int(plan.setting.zero[key])
            yield key, max(1, size // 4)
            yield key, size * 4
