"""Steps that diverge: seen on every rank in the same step, and what the run does about them.

Without `train.rollback` the run ends and names the step's samples. With it rank 0 puts them into
quarantine.json, all ranks end, and `ds-train train` starts them again from the last checkpoint
(start.py): a new process group, because nothing that lies in memory can be trusted after a NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np

from ds_train.config.train import RollbackConfig
from ds_train.data.order import StepPlan
from ds_train.data.prepare import PreparedData
from ds_train.data.quarantine import (
    Rollback,
    Sample,
    describe_samples,
    read_rollbacks,
    write_rollbacks,
)
from ds_train.engine.ranks import Ranks
from ds_train.errors import RolledBack, TrainingDiverged, quoted
from ds_train.paths import RunPaths
from ds_train.train.step import StepResult

MAX_SKIPPED_STEPS = 50
"""fp16 lowers its loss scale by half at each overflow; 50 in a row are no longer a search."""


class DivergenceGuard:
    """Ends this process, on every rank in the same step, when a step has diverged."""

    def __init__(
        self,
        paths: RunPaths,
        data: PreparedData,
        plan: StepPlan,
        ranks: Ranks,
        *,
        rollback: RollbackConfig | None,
        recent_losses: Sequence[float],
        fp16: bool,
    ) -> None:
        """`recent_losses`: of the steps before, as the checkpoint has them."""
        self._paths, self._data, self._plan, self._ranks = paths, data, plan, ranks
        self._rollback, self._fp16 = rollback, fp16
        self._num_skipped = 0
        self._window = 0 if rollback is None or rollback.spike is None else rollback.window
        self.recent_losses = list(recent_losses)[-self._window :] if self._window else []
        """Of the last steps, for the checkpoint; empty where nobody compares with them."""

    def check(self, step: int, result: StepResult) -> None:
        """Look at what step number `step` gave.

        An overflow of fp16's scaled gradients is part of finding the loss scale: it is counted.

        Raises:
            RolledBack: the step diverged; its samples are in quarantine from now on.
            TrainingDiverged: it did, and there is no rollback (left): its samples are listed.
        """
        overflow = self._fp16 and math.isfinite(result.loss) and math.isinf(result.grad_norm)
        self._num_skipped = self._num_skipped + 1 if overflow else 0
        if overflow and self._num_skipped < MAX_SKIPPED_STEPS:
            return
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            self._diverged(
                step,
                result.loss,
                f"loss = {result.loss}, gradient norm = {result.grad_norm}: not finite",
            )
        if (spike := self._spike(result.loss)) is not None:
            self._diverged(step, result.loss, spike)
        if self._window:
            self.recent_losses = [*self.recent_losses, result.loss][-self._window :]

    def _spike(self, loss: float) -> str | None:
        rollback = self._rollback
        if rollback is None or rollback.spike is None or len(self.recent_losses) < self._window:
            return None
        usual = median(self.recent_losses)
        if loss <= rollback.spike * usual:
            return None
        return (
            f"loss = {loss:.6g}, more than train.rollback.spike = {rollback.spike:g} times the "
            f"median {usual:.6g} of the {self._window} steps before"
        )

    def _diverged(self, step: int, loss: float, reason: str) -> None:
        """End here; rank 0 writes first, and all wait for it: the first one to end ends all."""
        past = read_rollbacks(self._paths)
        again = self._rollback is not None and len(past) < self._rollback.attempts
        if again:
            assert self._rollback is not None
            first = max(1, step - self._rollback.steps + 1)
            known = loss if math.isfinite(loss) else None
            entry = Rollback(step, first, reason, self._samples(first, step), known)
            if self._ranks.is_main:
                write_rollbacks(self._paths, [*past, entry], self._data.fingerprint)
            self._ranks.barrier()
            raise RolledBack(
                f"step {step:,}: {reason}. Its {len(entry.samples):,} samples are in quarantine "
                f"({quoted(self._paths.quarantine)}); rollback {len(past) + 1} of "
                f"{self._rollback.attempts}."
            )
        file = self._paths.root / f"diverged_step_{step}.json"
        if self._ranks.is_main:
            facts: dict[str, Any] = {"step": step, "reason": reason}
            facts["samples"] = [asdict(one) for one in self._samples(step, step)]
            file.write_text(json.dumps(facts, indent=1) + "\n")
        self._ranks.barrier()
        raise TrainingDiverged(
            f"step {step:,}: {reason}, so the run stops. Its samples are listed in "
            f"{quoted(file)}; the last checkpoint is untouched. {_remedy(self._rollback, past)}"
        )

    def _samples(self, first: int, last: int) -> list[Sample]:
        """Of the steps with these numbers."""
        ids = [self._plan.sample_ids(step - 1) for step in range(first, last + 1)]
        return describe_samples(self._data.train, self._data.source_names, np.concatenate(ids))


def _remedy(rollback: RollbackConfig | None, past: Sequence[Rollback]) -> str:
    if rollback is None:
        return (
            "Look at those samples, lower train.learning_rate, or set train.rollback to go on "
            "without them."
        )
    steps = ", ".join(f"{one.step:,}" for one in past)
    return (
        f"All train.rollback.attempts = {rollback.attempts} are used up (steps {steps}): that is "
        "not a matter of single samples. Lower train.learning_rate, or raise attempts."
    )
