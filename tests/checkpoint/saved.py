"""Checkpoints written without DeepSpeed: `save_checkpoint` is given what only has states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.checkpoint.state import save_checkpoint
from ds_train.engine.piece import Piece, State
from ds_train.engine.ranks import Ranks
from ds_train.paths import RunPaths


class StatesOnly:
    """As much of an engine, and of its states, as saving looks at."""

    ranks = Ranks(0, 0, 1)
    are_shared_out = False
    stay_in_place = True

    @property
    def states(self) -> StatesOnly:
        """They are its own."""
        return self

    def pieces(self) -> Iterator[Piece]:
        """Two parameters with their Adam tensors; one value is NaN."""
        for name, size in (("a.weight", 5), ("b.weight", 7)):
            values = torch.arange(float(size))
            values[0] = float("nan")
            tensors = {"param": values, "exp_avg": values + 1, "exp_avg_sq": values + 2}
            yield Piece(name, (size,), 0, tensors)

    def whole_params(self) -> Iterator[tuple[str, Tensor]]:
        """Their weights."""
        for piece in self.pieces():
            yield piece.name, piece.tensors["param"]

    def read_behind(self, wait: Callable[[], None]) -> None:
        """The next update, which is the test's, calls this."""
        self.before_update = wait


def save(
    paths: RunPaths, step: int, write_extra: Callable[[Path, State], None] | None = None
) -> Path:
    """A checkpoint of step `step`."""
    engine: Any = StatesOnly()
    return save_checkpoint(
        paths, engine, CheckpointFacts(step, step, 10 * step, None, "b", "d"), write_extra
    )
