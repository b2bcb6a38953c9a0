"""What stands between a run and wasted days: clean stops, divergence, and packing that leaks."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ds_train.data.batch import collate
from ds_train.data.order import StepPlan
from ds_train.data.prepare import PreparedData
from ds_train.engine.engine import Engine
from ds_train.errors import ConfigError, TrainingDiverged, quoted
from ds_train.paths import RunPaths
from ds_train.train.step import StepResult

MAX_SKIPPED_STEPS = 50
"""fp16 lowers its loss scale by half at each overflow; 50 in a row are no longer a search."""


class StopRequest:
    """Set by SIGTERM, SIGINT or SIGUSR1, or by a file; the loop then saves and ends after the step
    in progress.

    The file is how a run over several hosts is asked, whose ranks no signal from here reaches.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._file: Path | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def watch(self, file: Path) -> None:
        """Count `file` as a request too; one rank needs to look, as all agree in each step."""
        self._file = file

    def answered(self) -> None:
        """The run has saved: the file must not stop the next one."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.signal_name is not None or (self._file is not None and self._file.exists())


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


class _TwoDocuments:
    """A store of two documents for the probe; the first one can be another."""

    def __init__(self, first: int, vocab_size: int) -> None:
        documents = [range(first, first + 8), (5, 7, 6, 9, 8, 4, 10, 5)]
        self._ids = [np.array(ids, dtype=np.int64) % vocab_size for ids in documents]
        self.lengths = np.array([8, 8], dtype=np.int32)

    def tokens(self, index: int) -> NDArray[np.int64]:
        return self._ids[index]

    def mask(self, index: int) -> NDArray[np.bool_]:
        return np.full(8, index == 1)


@torch.no_grad()
def check_packing_isolation(
    engine: Engine,
    *,
    attention: str,
    vocab_size: int,
    flatten: bool,
    setting: str = "data.packing = true",
) -> None:
    """Prove on the model itself that a packed document does not see the one before it.

    Windows inside a document (`setting`: curriculum.seq_len.mode = window) are made in the same
    way, by positions that begin anew.

    Two micro-batches of two equal rows, laid out as in training, differ in their rows' first
    document only; the loss of the second documents must not change in a single bit. A collective
    call under ZeRO-3.

    Raises:
        ConfigError: the architecture (or its attention implementation) lets documents mix.
    """
    losses = []
    engine.train_mode(False)
    for first in (3, 11):
        rows = [np.array([0, 1]), np.array([0, 1])]
        store: Any = _TwoDocuments(first, vocab_size)  # all that `collate` asks of a TokenStore
        batch = collate(store, rows, pad_token_id=0, flatten=flatten)
        losses.append(float(engine.forward(batch.to(engine.ranks.device))))
    engine.train_mode(True)
    if losses[0] != losses[1]:
        remedy = "data.packing: false" if "packing" in setting else "mode: reshape"
        raise ConfigError(
            f"{setting}: with attention {attention!r} this architecture lets a document "
            f"see the one packed before it (its loss moves from {losses[0]:.6f} to "
            f"{losses[1]:.6f}). Set {remedy}, or another model.attn_implementation."
        )
