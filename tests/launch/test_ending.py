"""When `run_launcher` ends a launch by itself, with commands that stand for the launcher."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ds_train.errors import RunFailed
from ds_train.launch import board as board_module
from ds_train.launch import process
from ds_train.launch.board import Board
from ds_train.launch.notes import RankNote, stacks_path, write_note
from ds_train.launch.process import run_launcher
from ds_train.launch.world import World
from ds_train.paths import RunPaths

RESET = "Connection reset by peer"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """Two ranks on two hosts, and no patience."""
    for name in ("_AFTER_HANG_SECONDS", "_AFTER_FAILURE_SECONDS"):
        monkeypatch.setattr(board_module, name, 0.1)
    for name in ("_OTHER_HOSTS_SECONDS", "_GONE_SECONDS", "_LOOK_SECONDS"):
        monkeypatch.setattr(process, name, 0.2)
    return Board.make_ready(RunPaths(tmp_path), World({"a": [0], "b": [0]}, "hosts", 0, None))


def leave(board: Board, rank: int, state: Any, **values: Any) -> None:
    position = (3, 0, 0)
    note = RankNote(rank, 2, f"host-{rank}", 7, state, 1.0, "step 3", position, **values)
    write_note(board.paths.ranks, note)


def over_ssh(board: Board, *command: str) -> int:
    return run_launcher(
        command, is_local=False, stop_file=board.paths.stop, board=board, hang_seconds=60
    )


def test_a_launcher_that_waits_for_a_host_that_is_gone_is_ended(board: Board) -> None:
    leave(board, 0, "ended", code=1, error="RuntimeError", text=RESET)
    leave(board, 1, "running")
    began = time.monotonic()
    with pytest.raises(RunFailed, match=r"rank 1 \(b\) was gone in step 3 without a word") as error:
        over_ssh(board, "sleep", "60")
    assert time.monotonic() - began < 20
    assert error.value.failure.can_restart
    assert (board.paths.ranks / "attempt").read_text() == "ended"


def test_a_hang_is_told_with_where_the_stacks_are(board: Board) -> None:
    leave(board, 0, "hung", where="all_reduce (x.py, line 1)")
    leave(board, 1, "running")
    stacks_path(board.paths.ranks, 0).write_text("stacks")
    with pytest.raises(RunFailed, match=r"rank 1 \(b\) wrote no stacks") as error:
        over_ssh(board, "sleep", "60")
    assert f"Stacks of all threads: {board.paths.hang / '1'}." in str(error.value)


def test_exit_code_0_of_a_launcher_is_not_believed_while_ranks_have_not_ended(board: Board) -> None:
    leave(board, 1, "running")
    with pytest.raises(RunFailed, match="the deepspeed launcher was killed before its ranks came"):
        over_ssh(board, "true")


def test_a_good_end_leaves_nothing(board: Board) -> None:
    assert over_ssh(board, "true") == 0
    assert not board.paths.ranks.exists()
