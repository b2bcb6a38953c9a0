"""A damaged checkpoint is known by its checksums, set aside, and the one before it goes on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from saved import State, save

from ds_train.checkpoint.checksums import (
    CHECKSUMS,
    find_damage,
    refuse_damaged,
    set_aside_damaged,
)
from ds_train.checkpoint.folder import latest_checkpoint
from ds_train.errors import CheckpointError
from ds_train.paths import RunPaths

FILES = ["checkpoint.json", "notes.txt", "state/rank-00000.safetensors"]


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "run")


def write_notes(folder: Path, trained: State) -> None:
    (folder / "notes.txt").write_text("beside the state")


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_sha256sum_agrees(paths: RunPaths) -> None:
    folder = save(paths, 1, write_notes)
    assert [line.split("  ")[1] for line in (folder / CHECKSUMS).read_text().splitlines()] == FILES
    if (program := shutil.which("sha256sum")) is None:
        pytest.skip("needs the command sha256sum")
    subprocess.run([program, "--check", "--strict", CHECKSUMS], cwd=folder, check=True)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["bit", "shorter", "gone"])
def test_every_file_is_watched(paths: RunPaths, name: str, harm: str) -> None:
    folder = save(paths, 1, write_notes)
    assert find_damage(folder) is None
    if harm == "bit":
        flip_bit(folder / name)
    elif harm == "shorter":
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    else:
        (folder / name).unlink()
    reason = "No such file" if harm == "gone" else "is not what was written"
    damage = find_damage(folder)
    assert damage is not None and name in damage and reason in damage
    with pytest.raises(CheckpointError, match=r"is damaged: .* or start the training command"):
        refuse_damaged(folder)


def test_unreadable_checksums(paths: RunPaths) -> None:
    folder = save(paths, 1)
    (folder / CHECKSUMS).write_text("nonsense\n")
    assert find_damage(folder) == "SHA256SUMS can't be read"


def test_checkpoints_from_before_there_were_checksums_count_as_whole(paths: RunPaths) -> None:
    folder = save(paths, 1)
    (folder / CHECKSUMS).unlink()
    flip_bit(folder / FILES[-1])
    assert find_damage(folder) is None


def test_the_one_before_goes_on(paths: RunPaths) -> None:
    folders = [save(paths, step) for step in (1, 2, 3)]
    for folder in folders[1:]:
        flip_bit(folder / FILES[-1])
    said: list[str] = []
    set_aside_damaged(paths, said.append)
    assert latest_checkpoint(paths) == folders[0]
    assert (paths.checkpoints / "latest").read_text() == "step-00000001\n"
    assert said[0].startswith("checkpoint step-00000003 is damaged (state/rank-00000.safetensors ")
    assert said[1].endswith(": set aside as damaged-step-00000002; goes on from step-00000001")
    aside = sorted(path.name for path in paths.checkpoints.glob("damaged-*"))
    assert aside == ["damaged-step-00000002", "damaged-step-00000003"]


def test_nothing_whole_is_left_and_names_are_taken(paths: RunPaths) -> None:
    said: list[str] = []
    for _ in range(2):
        flip_bit(save(paths, 1) / FILES[-1])
        set_aside_damaged(paths, said.append)
    assert latest_checkpoint(paths) is None
    assert said[0].endswith("set aside as damaged-step-00000001; begins at step 0 again")
    assert "set aside as damaged-step-00000001-2;" in said[1]


def test_a_whole_run_is_left_alone(paths: RunPaths) -> None:
    save(paths, 1)
    before = sorted(paths.root.rglob("*"))
    set_aside_damaged(paths, pytest.fail)
    assert sorted(paths.root.rglob("*")) == before
