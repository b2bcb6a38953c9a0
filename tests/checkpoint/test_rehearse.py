"""The rehearsal of saving finds what would be found hours later."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from saved import StatesOnly, save

from ds_train.checkpoint import rehearse, state
from ds_train.checkpoint.pieces import Share, save_share
from ds_train.checkpoint.rehearse import rehearse_save
from ds_train.engine.piece import State
from ds_train.errors import CheckpointError
from ds_train.paths import RunPaths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "run")


def adapter(folder: Path, trained: State) -> None:
    save_file(trained, str(folder / "adapter_model.safetensors"))


def rehearsed(paths: RunPaths, write_extra: Any = adapter, num_kept: int = 3) -> list[str]:
    engine: Any = StatesOnly()
    said: list[str] = []
    rehearse_save(paths, engine, write_extra, num_kept=num_kept, say=said.append)
    return said


@pytest.mark.parametrize("write_extra", [adapter, None])
def test_it_says_what_it_found_and_leaves_nothing(paths: RunPaths, write_extra: Any) -> None:
    (line,) = rehearsed(paths, write_extra)
    assert re.fullmatch(
        r"save rehearsal: \d+ B written, read again and equal, in .*; the run holds up to 3 "
        r"checkpoints \([\d.]+ KiB; .* free\)",
        line,
    ), line
    assert list(paths.checkpoints.iterdir()) == []


def test_a_file_system_that_changes_values(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_otherwise(path: Path, share: Share) -> None:
        save_share(path, Share({**share.tensors, "b.weight|exp_avg": torch.zeros(7)}))

    monkeypatch.setattr(state, "save_share", save_otherwise)
    with pytest.raises(CheckpointError, match=r"b\.weight\|exp_avg reads back .* other values"):
        rehearsed(paths)
    assert list(paths.checkpoints.iterdir()) == []


def test_a_tensor_that_is_not_written(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_less(path: Path, share: Share) -> None:
        fewer = {key: one for key, one in share.tensors.items() if key != "a.weight|param"}
        save_share(path, Share(fewer))

    monkeypatch.setattr(state, "save_share", save_less)
    with pytest.raises(
        CheckpointError, match=r"has other tensors than the run \(a\.weight\|param\)"
    ):
        rehearsed(paths)


def test_an_adapter_in_which_a_weight_is_missing(paths: RunPaths) -> None:
    def lose_one(folder: Path, trained: State) -> None:
        adapter(folder, {"a.weight": trained["a.weight"]})

    with pytest.raises(CheckpointError, match="would hold 5 numbers of 12 that train"):
        rehearsed(paths, lose_one)


def test_a_folder_that_cannot_be_written_to(paths: RunPaths) -> None:
    paths.root.write_text("a file where the run folder shall be")
    with pytest.raises(CheckpointError, match="checkpoint rehearsal could not be written to"):
        rehearsed(paths)


def test_a_run_that_would_fill_the_disk(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(free=5_000)
    monkeypatch.setattr(rehearse.shutil, "disk_usage", lambda path: free)  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"21 more at once, .* are free there\. Make room"):
        rehearsed(paths, num_kept=20)
    save(paths, 1)
    free.free = 3_000
    rehearsed(paths, num_kept=1)  # the one that is there makes room; one more is written first
