"""The watchdog in processes that stand still: stacks, notes, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from ds_train.launch.board import Board
from ds_train.launch.notes import RankNote, note_path, read_notes, stacks_path, write_note
from ds_train.launch.watchdog import ATTEMPT_VARIABLE, HANG_FILE
from ds_train.launch.world import World
from ds_train.paths import RunPaths

RANK = """
import ctypes, sys, time
from pathlib import Path
from ds_train.launch import marks, watchdog
watchdog.SETUP_SECONDS, watchdog._GRACE_SECONDS = 0, 1 if sys.argv[3] == "holds" else 15
with watchdog.watched(Path(sys.argv[1]), float(sys.argv[2]) or None):
    marks.begin_step(6)
    marks.begin_step(7)
    what = sys.argv[3]
    if what == "sleeps":
        time.sleep(60)
    if what == "holds":
        ctypes.PyDLL(None).sleep(60)
    if what == "works":
        for _ in range(40):
            marks.tick()
            time.sleep(0.05)
    if what == "loses":
        raise RuntimeError("Read error: Connection reset by peer")
    if what == "fails":
        raise OSError(28, "No space left on device")
"""

NOTE = RankNote(1, 2, "vm", 7, "running", 1.0, "step 3", (3, 0, 1))


def start(
    root: Path,
    what: str,
    seconds: float = 0.8,
    rank: int = 0,
    world_size: int = 1,
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world_size)}
    environment |= variables or {}
    return subprocess.Popen(
        [sys.executable, "-c", RANK, str(root), str(seconds), what],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_all_ranks_write_their_stacks(tmp_path: Path) -> None:
    """The second has a limit that it would never come to: the first tells it."""
    ranks = [
        start(tmp_path, "sleeps", 0.8, 0, 2),
        start(tmp_path, "sleeps", 30.0, 1, 2),
    ]
    printed = [rank.communicate(timeout=40)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert "rank 0: no progress for 1 s in step 7; the stacks of all ranks go to" in printed[0]
    notes = read_notes(RunPaths(tmp_path).ranks)
    for rank in (0, 1):
        text = stacks_path(RunPaths(tmp_path).ranks, rank).read_text()
        assert text.startswith(f"rank {rank} of 2, ") and ": step 7, mark 0, " in text
        assert 'File "<string>", line 11 in <module>' in text
        assert (notes[rank].state, notes[rank].phase) == ("hung", "step 7")


def test_what_an_earlier_launch_has_left_is_not_taken_for_a_hang(tmp_path: Path) -> None:
    ranks = RunPaths(tmp_path).ranks
    ranks.mkdir()
    write_note(ranks, NOTE)
    (ranks / HANG_FILE).touch()
    for path in ranks.iterdir():
        os.utime(path, (1.0, 1.0))
    rank = start(tmp_path, "works")
    printed, _ = rank.communicate(timeout=40)
    assert rank.returncode == 0, printed
    nodes = World({"node-0": [0], "node-1": [0]}, "hosts", 0, None, per_node=True)
    board = Board.make_ready(RunPaths(tmp_path), nodes)
    assert board.notes() == {} and board.hosts == {} and board.variables == {}
    assert sorted(path.name for path in ranks.iterdir()) == ["hang", "rank-00001.json"]


def test_code_that_holds_the_interpreters_lock_is_ended_by_the_timer(tmp_path: Path) -> None:
    rank = start(tmp_path, "holds")
    began = time.monotonic()
    rank.communicate(timeout=40)
    assert rank.returncode == 1 and time.monotonic() - began < 30
    assert 'File "<string>", line 13 in <module>' in (
        stacks_path(RunPaths(tmp_path).ranks, 0).read_text()
    )
    assert read_notes(RunPaths(tmp_path).ranks)[0].state == "running"


def test_progress_keeps_a_rank_alive_and_a_good_end_leaves_no_trace(tmp_path: Path) -> None:
    rank = start(tmp_path, "works")
    printed, _ = rank.communicate(timeout=40)
    assert rank.returncode == 0, printed
    assert not RunPaths(tmp_path).ranks.exists()


def test_last_words(tmp_path: Path) -> None:
    ranks = [start(tmp_path, "fails", 0.0, 0, 2), start(tmp_path, "loses", 0.0, 1, 2)]
    printed = [rank.communicate(timeout=40)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1]
    notes = read_notes(RunPaths(tmp_path).ranks)
    assert (notes[0].state, notes[0].error, notes[0].errno) == ("ended", "OSError", 28)
    assert (notes[1].state, notes[1].error, notes[1].code) == ("ended", "RuntimeError", 1)
    assert "RunFailed: lost the others in step 7: Read error: Connection reset by" in printed[1]


def test_a_rank_of_another_launch_ends(tmp_path: Path) -> None:
    board = Board.make_ready(RunPaths(tmp_path), World({"node-0": [0]}, "hosts", 0, None))
    assert board.variables == {ATTEMPT_VARIABLE: board.attempt}
    rank = start(tmp_path, "sleeps", 30.0, variables=board.variables)
    deadline = time.monotonic() + 20
    while not board.notes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert rank.poll() is None
    board.end_ranks()
    rank.communicate(timeout=30)
    assert rank.returncode == 1
    assert stacks_path(RunPaths(tmp_path).ranks, 0).read_text() == ""


def test_the_board_waits_for_ranks_that_failed(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    board = Board.make_ready(paths, World({"a": [0], "b": [0]}, "hosts", 0, None))
    assert board.hosts == {0: "a", 1: "b"}
    write_note(paths.ranks, NOTE)
    assert board.notes() == {1: NOTE}
    assert board.patience_seconds() is None
    note_path(paths.ranks, 0).write_text("{")  # being written by something that is no move
    assert board.notes() == {1: NOTE}
    write_note(paths.ranks, RankNote(**{**NOTE.__dict__, "state": "ended", "code": 1}))
    slow = board.patience_seconds()
    write_note(paths.ranks, RankNote(**{**NOTE.__dict__, "state": "hung"}))
    quick = board.patience_seconds()
    assert slow is not None and quick is not None and quick < slow


def test_stacks_outlive_the_next_launch(tmp_path: Path) -> None:
    paths, world = RunPaths(tmp_path), World({"localhost": [0, 1]}, None, 0, None)
    for number in (1, 2):
        board = Board.make_ready(paths, world)
        assert board.keep_stacks() is None
        stacks_path(paths.ranks, 0).write_text("")
        stacks_path(paths.ranks, 1).write_text(f"stacks {number}")
        assert board.hung_ranks() == [1]
        assert board.keep_stacks() == paths.hang / str(number)
    assert (paths.hang / "1" / "rank-00001.txt").read_text() == "stacks 1"
    (paths.ranks / HANG_FILE).touch()
    Board.make_ready(paths, world)
    assert not (paths.ranks / HANG_FILE).exists()


@pytest.mark.parametrize(("seconds", "longest"), [(None, 1200.0), (6.0, 1200.0), (1800.0, 2400.0)])
def test_a_collective_may_take_longer_than_a_hang(seconds: float | None, longest: float) -> None:
    from ds_train.launch.watchdog import collective_seconds

    assert collective_seconds(seconds) == longest
