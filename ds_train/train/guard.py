"""What stands between a run and wasted days: clean stops, and packing that leaks."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ds_train.data.batch import collate
from ds_train.engine.engine import Engine
from ds_train.errors import ConfigError
from ds_train.launch import marks


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
        marks.asked()

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.signal_name is not None or (self._file is not None and self._file.exists())


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
        batch = engine.share(collate(store, rows, pad_token_id=0, flatten=flatten))
        losses.append(float(engine.forward(batch.to(engine.ranks.device))))
    engine.train_mode(True)
    if engine.shared is not None:  # each rank has the loss of its positions, and all must agree
        losses = engine.ranks.sum(torch.tensor(losses, dtype=torch.float64)).tolist()
    if losses[0] != losses[1]:
        remedy = "data.packing: false" if "packing" in setting else "mode: reshape"
        raise ConfigError(
            f"{setting}: with attention {attention!r} this architecture lets a document "
            f"see the one packed before it (its loss moves from {losses[0]:.6f} to "
            f"{losses[1]:.6f}). Set {remedy}, or another model.attn_implementation."
        )
