"""What stands between a run and wasted days: clean stops, divergence, and packing that leaks."""

from __future__ import annotations

import json
import math
import signal
from types import FrameType
from typing import Any

import torch

from ds_train.data.batch import IGNORE, Batch
from ds_train.data.order import StepPlan
from ds_train.data.prepare import PreparedData
from ds_train.engine.engine import Engine
from ds_train.errors import ConfigError, TrainingDiverged, quoted
from ds_train.paths import RunPaths
from ds_train.train.step import StepResult

MAX_SKIPPED_STEPS = 50
"""fp16 lowers its loss scale by half at each overflow; 50 in a row are no longer a search."""


class StopRequest:
    """Set by SIGTERM or SIGINT; the loop then saves and ends after the step in progress."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.signal_name is not None


class DivergenceGuard:
    """Ends the run, on every rank in the same step, when loss or gradient norm is not finite."""

    def __init__(self, paths: RunPaths, data: PreparedData, plan: StepPlan, *, fp16: bool) -> None:
        self._paths, self._data, self._plan = paths, data, plan
        self._fp16 = fp16
        self._num_skipped = 0

    def check(self, step: int, result: StepResult, *, write: bool) -> None:
        """Raise TrainingDiverged where training can't go on; `write` names the samples on disk.

        An overflow of fp16's scaled gradients is part of finding the loss scale: it is counted.
        """
        overflow = self._fp16 and math.isfinite(result.loss) and math.isinf(result.grad_norm)
        self._num_skipped = self._num_skipped + 1 if overflow else 0
        if overflow and self._num_skipped < MAX_SKIPPED_STEPS:
            return
        if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
            return
        file = self._paths.root / f"diverged_step_{step}.json"
        if write:
            file.write_text(json.dumps(self._describe(step, result), indent=1) + "\n")
        raise TrainingDiverged(
            f"step {step:,}: loss = {result.loss}, gradient norm = {result.grad_norm}: not finite, "
            f"so the run stops. Its samples are listed in {quoted(file)}; the last checkpoint is "
            "untouched. Look at those samples, or lower train.learning_rate."
        )

    def _describe(self, step: int, result: StepResult) -> dict[str, Any]:
        store, names = self._data.train, self._data.source_names
        samples = [
            {
                "sample": int(sample),
                "source": names[int(store.sources[sample])],
                "row": int(store.ordinals[sample]),
            }
            for sample in self._plan.sample_ids(step)
        ]
        return {
            "step": step,
            "loss": repr(result.loss),
            "grad_norm": repr(result.grad_norm),
            "samples": samples,
        }


@torch.no_grad()
def check_packing_isolation(engine: Engine, *, attention: str, vocab_size: int) -> None:
    """Prove on the model itself that a packed document does not see the one before it.

    Two rows are run that differ in their first document only; the loss of the second document
    must not change in a single bit. A collective call under ZeRO-3.

    Raises:
        ConfigError: the architecture (or its attention implementation) lets documents mix.
    """
    engine.train_mode(False)
    losses = [_second_document_loss(engine, first, vocab_size) for first in (3, 11)]
    engine.train_mode(True)
    if losses[0] != losses[1]:
        raise ConfigError(
            f"data.packing = true: with attention {quoted(attention)} this architecture lets a "
            f"document see the one packed before it (its loss moves from {losses[0]:.6f} to "
            f"{losses[1]:.6f}). Set data.packing: false, or another model.attn_implementation."
        )


def _second_document_loss(engine: Engine, first: int, vocab_size: int) -> float:
    length, second = 8, [5, 7, 6, 9, 8, 4, 10, 5]
    ids = torch.tensor([[first + i for i in range(length)] + second]) % vocab_size
    labels = torch.full_like(ids, IGNORE)
    labels[:, length:-1] = ids[:, length + 1 :]
    positions = torch.arange(length).repeat(1, 2)
    batch = Batch(ids, labels, positions, sample_ids=torch.empty(0).numpy(), num_rows=1)
    return float(engine.forward(batch.to(engine.ranks.device))[0])
