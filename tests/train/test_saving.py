"""A run that fails while a checkpoint is written behind its steps still lets it come to its end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.engine.ranks import Ranks
from ds_train.paths import RunPaths
from ds_train.train import saving
from ds_train.train.saving import Saving


class Unfinished:
    """A checkpoint that is being written when another rank is gone."""

    waited_seconds = 0.0

    def __init__(self, paths: RunPaths, *_: Any) -> None:
        self.folder = paths.checkpoint(3)
        self.patience: list[float] = []

    def join(self) -> Path:
        raise RuntimeError("connection reset by peer")

    def let_finish(self, seconds: float) -> None:
        self.patience.append(seconds)


def test_what_is_being_written_may_end_after_a_collective_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Unfinished] = []

    def begin(*args: Any) -> Unfinished:
        begun.append(Unfinished(*args))
        return begun[0]

    monkeypatch.setattr(saving, "BackgroundSave", begin)
    facts = CheckpointFacts(0, 0, 0, None, "b", "d")
    engine = SimpleNamespace(num_updates=3, loss_scale={})
    run: Any = SimpleNamespace(
        start=facts,
        paths=RunPaths(tmp_path),
        engine=engine,
        write_extra=None,
        ranks=Ranks(0, 0, 2),
    )
    checkpoints = Saving(run, print)
    checkpoints.save(CheckpointFacts(3, 3, 30, None, "b", "d"), in_background=True)
    with pytest.raises(RuntimeError, match="connection reset"):
        checkpoints.finish()
    checkpoints.run_has_failed()
    assert len(begun[0].patience) == 1
