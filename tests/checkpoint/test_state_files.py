"""State files: whatever parts of parameters ranks wrote, others read the parts that they want."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from saved import save

from ds_train.checkpoint import state
from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.checkpoint.pieces import Share, StateFiles, save_share
from ds_train.engine.piece import Piece
from ds_train.errors import CheckpointError
from ds_train.paths import RunPaths

SHAPE = (6, 4)
WEIGHT = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def facts(num_files: int) -> CheckpointFacts:
    files = [f"rank-{rank:05d}.safetensors" for rank in range(num_files)]
    return CheckpointFacts(1, 1, 1, None, "b", "d", state_files=files)


def write(folder: Path, cuts: list[int]) -> StateFiles:
    """A rank between two cuts each."""
    (folder / "state").mkdir(parents=True, exist_ok=True)
    ends = [0, *cuts, WEIGHT.numel()]
    for rank, (start, stop) in enumerate(pairwise(ends)):
        share = Share()
        if start < stop:
            part = WEIGHT.view(-1)[start:stop]
            share.add(Piece("w", SHAPE, start, {"param": part, "exp_avg": -part}))
        save_share(folder / "state" / f"rank-{rank:05d}.safetensors", share)
    return StateFiles(folder, facts(len(ends) - 1))


@settings(deadline=None, max_examples=40)  # each writes to the disk
@given(
    st.lists(st.integers(0, 24), max_size=4).map(sorted),
    st.tuples(st.integers(0, 24), st.integers(0, 24)).map(sorted),
)
def test_any_part_of_any_parts(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], wanted: list[int]
) -> None:
    saved = write(tmp_path_factory.mktemp("checkpoint"), cuts)
    start, stop = wanted
    assert saved.names == {"w"} and set(saved.keys_of("w")) == {"param", "exp_avg"}
    assert torch.equal(saved.read("w", "param", start, stop), WEIGHT.view(-1)[start:stop])
    assert saved.shape("w") == SHAPE
    assert torch.equal(saved.read("w", "exp_avg"), -WEIGHT)


def test_whole_parameters_lie_in_the_file_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, [])
    stored = load_file(str(tmp_path / "state/rank-00000.safetensors"))
    assert set(stored) == {"w|param", "w|exp_avg"} and torch.equal(stored["w|param"], WEIGHT)


def test_16_bit_states_are_stored_in_fp32(tmp_path: Path) -> None:
    share = Share()
    share.add(Piece("w", SHAPE, 8, {"param": WEIGHT.view(-1)[8:12].bfloat16()}))
    save_share(tmp_path / "a.safetensors", share)
    stored = load_file(str(tmp_path / "a.safetensors"))["w|param|8"]
    assert torch.equal(stored, WEIGHT.view(-1)[8:12].bfloat16().float())


def test_each_tensor_that_is_written_is_a_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: list[None] = []
    monkeypatch.setattr(state, "tick", lambda: ticks.append(None))
    save(RunPaths(tmp_path / "run"), 1)
    assert len(ticks) == 6  # two parameters, three tensors each


def test_tensors_of_another_shape_than_the_parameter(tmp_path: Path) -> None:
    """Adafactor's sums of rows."""
    share = Share()
    share.add(Piece("w", SHAPE, 0, {"param": WEIGHT.view(-1), "row_var": torch.ones(6, 1)}))
    (tmp_path / "state").mkdir()
    save_share(tmp_path / "state/rank-00000.safetensors", share)
    saved = StateFiles(tmp_path, facts(1))
    assert saved.read("w").shape == SHAPE and saved.read("w", "row_var").shape == (6, 1)


def test_a_part_that_nobody_wrote(tmp_path: Path) -> None:
    write(tmp_path, [4, 9])
    save_file({}, str(tmp_path / "state/rank-00001.safetensors"))
    saved = StateFiles(tmp_path, facts(3))
    assert torch.equal(saved.read("w", "param", 9, 12), WEIGHT.view(-1)[9:12])
    with pytest.raises(CheckpointError, match=r"holds 19 of 24 elements of w, param\. Remove"):
        saved.read("w")


def test_another_optimizers_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no exp_avg_sq of w.*train\.optim"):
        write(tmp_path, []).read("w", "exp_avg_sq")


@pytest.mark.parametrize("content", [None, b"", b"\0" * 64])
def test_a_missing_or_damaged_file(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "state").mkdir()
    if content is not None:
        (tmp_path / "state/rank-00000.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank-00000.* is missing or damaged"):
        StateFiles(tmp_path, facts(1))
