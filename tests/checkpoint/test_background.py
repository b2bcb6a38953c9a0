"""A checkpoint that is written while the run goes on holds what was there when it was asked for."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved import StatesOnly, save

from ds_train.checkpoint import state
from ds_train.checkpoint.background import BackgroundSave
from ds_train.checkpoint.checksums import find_damage
from ds_train.checkpoint.folder import CheckpointFacts, latest_checkpoint
from ds_train.checkpoint.pieces import Share, StateFiles, save_share
from ds_train.engine.piece import Piece, State
from ds_train.errors import CheckpointError
from ds_train.paths import RunPaths


class LiveEngine(StatesOnly):
    """Its states are the tensors that training changes."""

    def __init__(self) -> None:
        self.live = torch.ones(5)

    def pieces(self) -> Iterator[Piece]:
        yield Piece("a.weight", (5,), 0, {"param": self.live})


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "run")


def begin(paths: RunPaths, engine: Any, write_extra: Any = None) -> BackgroundSave:
    return BackgroundSave(paths, engine, CheckpointFacts(7, 7, 70, None, "b", "d"), write_extra)


def test_later_steps_do_not_get_into_it(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = Event()

    def save_late(path: Path, share: Share) -> None:
        assert go_on.wait(30)
        save_share(path, share)

    monkeypatch.setattr(state, "save_share", save_late)
    older = save_and_restore(paths, monkeypatch)
    engine, seen = LiveEngine(), {}
    saving = begin(paths, engine, lambda folder, trained: seen.update(trained))
    engine.before_update()
    engine.live.fill_(2)  # the next step
    assert latest_checkpoint(paths) == older
    go_on.set()
    folder = saving.join()
    assert latest_checkpoint(paths) == folder and find_damage(folder) is None
    saved = load_file(str(folder / "state" / "rank-00000.safetensors"))["a.weight|param"]
    assert saved.tolist() == [1.0] * 5 and seen["a.weight"].tolist() == [1.0] * 5
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["rank-00000.safetensors"]


def test_an_update_waits_for_the_copy_only(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passes before it do not wait, and it does not wait for the disk."""
    copy_now, write_now, updated = Event(), Event(), Event()
    copy = Share.copy_to_host

    def copy_late(share: Share) -> None:
        assert copy_now.wait(30)
        copy(share)

    def save_late(path: Path, share: Share) -> None:
        assert write_now.wait(30)
        save_share(path, share)

    monkeypatch.setattr(Share, "copy_to_host", copy_late)
    monkeypatch.setattr(state, "save_share", save_late)
    engine = LiveEngine()
    saving = begin(paths, engine)

    def update() -> None:
        engine.before_update()
        engine.live.fill_(2)
        updated.set()

    updating = Thread(target=update)
    updating.start()
    assert not updated.wait(0.2)
    copy_now.set()
    assert updated.wait(30) and latest_checkpoint(paths) is None
    write_now.set()
    folder = saving.join()
    updating.join()
    assert StateFiles(folder).read("a.weight").tolist() == [1.0] * 5
    assert saving.waited_seconds > 0.2


def save_and_restore(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An older checkpoint, written at once."""
    slow = state.save_share
    monkeypatch.setattr(state, "save_share", save_share)
    folder = save(paths, 1)
    monkeypatch.setattr(state, "save_share", slow)
    return folder


def test_a_full_disk_is_raised_when_it_is_waited_for(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = save(paths, 1)

    def full(path: Path, share: Share) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "save_share", full)
    saving = begin(paths, StatesOnly())
    with pytest.raises(CheckpointError, match=r"step-00000007 could not be written .*No space"):
        saving.join()
    assert latest_checkpoint(paths) == older


def test_another_ranks_failure_is_known_to_rank_0(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread does not wait for a share that will not come: the disk is full for notes too."""

    class TwoRanks:
        rank, world_size, is_main, device = 0, 2, True, torch.device("cpu")

        def barrier(self) -> None:
            pass

        def first_text(self, text: str) -> str:
            return text or "rank 1: the disk is full"

    engine = StatesOnly()
    monkeypatch.setattr(engine, "ranks", TwoRanks(), raising=False)
    with pytest.raises(CheckpointError, match="rank 1: the disk is full"):
        begin(paths, engine).join()
    assert latest_checkpoint(paths) is None


def test_a_defect_in_the_thread_is_no_checkpoint(paths: RunPaths) -> None:
    def forget(folder: Path, trained: State) -> None:
        raise KeyError("a.weight.lora")

    with pytest.raises(CheckpointError, match=r"rank 0: .*a\.weight\.lora"):
        begin(paths, StatesOnly(), forget).join()
    assert latest_checkpoint(paths) is None
