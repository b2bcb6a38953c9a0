"""Checkpoints written without an engine: `save_checkpoint` is given one that only has states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.checkpoint.state import save_checkpoint
from ds_train.engine.ranks import Ranks
from ds_train.paths import RunPaths

State = dict[str, Tensor]


class StatesOnly:
    """As much of an engine as saving looks at."""

    ranks = Ranks(0, 0, 1)

    def read_states(self) -> Iterator[tuple[str, State]]:
        """Two parameters with their Adam tensors; one value is NaN."""
        for name, size in (("a.weight", 5), ("b.weight", 7)):
            values = torch.arange(float(size))
            values[0] = float("nan")
            yield name, {"param": values, "exp_avg": values + 1, "exp_avg_sq": values + 2}


def save(
    paths: RunPaths, step: int, write_extra: Callable[[Path, State], None] | None = None
) -> Path:
    """A checkpoint of step `step`."""
    engine: Any = StatesOnly()
    return save_checkpoint(
        paths, engine, CheckpointFacts(step, step, 10 * step, None, "b", "d"), write_extra
    )
