"""The cause of a run's end, from the launcher's exit code and the ranks' notes."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from ds_train.launch.failure import Ended, find_failure
from ds_train.launch.notes import RankNote

HERE = {0: "localhost", 1: "localhost"}
NODES = {0: "node-0", 1: "node-1"}
RESET = "[pair.cc:537] Read error [127.0.0.1]:5027: Connection reset by peer"


def note(rank: int, state: Any = "running", **values: Any) -> RankNote:
    usual: dict[str, Any] = {
        "world_size": 2,
        "host": "vm",
        "pid": 100 + rank,
        "time": 10.0 + rank,
        "phase": "step 6",
        "position": (9, 0, 2),
    }
    return RankNote(rank=rank, state=state, **{**usual, **values})


def ended(rank: int, error: str, text: str, **values: Any) -> RankNote:
    return note(rank, "ended", code=1, error=error, text=text, **values)


def notes(*some: RankNote) -> dict[int, RankNote]:
    return {one.rank: one for one in some}


LOST = ended(0, "RuntimeError", RESET, time=1.0)

# launcher's code, notes, hosts, kind, words of the message, whether a restart can help
CASES: list[tuple[int, dict[int, RankNote], dict[int, str], str, str, bool]] = [
    (247, notes(LOST, note(1)), HERE, "killed", "rank 1 was killed by SIGKILL in step 6", True),
    (249, notes(LOST, note(1)), HERE, "killed", "rank 1 was killed by SIGBUS in step 6.", True),
    (247, {}, {}, "killed", "a training process was killed by SIGKILL", True),
    (
        # the launcher has met the one that lost its peer first
        1,
        notes(LOST, note(1)),
        NODES,
        "killed",
        "rank 1 (node-1) was gone in step 6 without a word: killed, or its host is lost.",
        True,
    ),
    (
        # asked by the launcher to end, then killed by it: not the cause
        247,
        notes(note(0, was_asked=True), note(1)),
        HERE,
        "killed",
        "rank 1 was killed by SIGKILL (the usual cause is too little memory); last seen in step 6.",
        True,
    ),
    (-9, notes(note(0), note(1)), HERE, "launcher", "launcher was killed by SIGKILL.", True),
    (0, {}, HERE, "launcher", "launcher was killed before its ranks came to their end.", True),
    (
        1,
        notes(LOST, ended(1, "RuntimeError", RESET)),
        NODES,
        "connection",
        "rank 0 (node-0) lost the others in step 6 (RuntimeError",
        True,
    ),
    (
        1,
        notes(LOST, ended(1, "AcceleratorError", "CUDA error: an illegal memory access")),
        HERE,
        "device",
        "rank 1 ended in step 6: AcceleratorError: CUDA error",
        True,
    ),
    (
        1,
        notes(LOST, ended(1, "AcceleratorError", "CUDA error: device-side assert triggered")),
        HERE,
        "error",
        "device-side assert triggered. Its error stands above.",
        False,
    ),
    (
        1,
        notes(LOST, ended(1, "OutOfMemoryError", "CUDA out of memory. Tried to allocate")),
        HERE,
        "memory",
        "rank 1 ran out of memory in step 6. Lower train.per_device_train_batch_size",
        False,
    ),
    (
        1,
        notes(LOST, ended(1, "OSError", "[Errno 28] No space", errno=errno.ENOSPC)),
        HERE,
        "disk",
        "Make room; the same command goes on.",
        False,
    ),
    (
        1,
        notes(ended(0, "TrainingDiverged", "x"), ended(1, "TrainingDiverged", "x")),
        HERE,
        "diverged",
        "the training diverged in step 6 (rank 0; see above).",
        False,
    ),
    (
        1,
        notes(LOST, ended(1, "ValueError", "bad")),
        HERE,
        "error",
        "rank 1 ended in step 6: ValueError: bad. Its error stands above.",
        False,
    ),
    (3, {}, {}, "error", "a training process ended with exit code 3; its error stands", False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[3]}-{case[0]}")
def test_one_cause(case: Any) -> None:
    code, known, hosts, kind, words, can_restart = case
    failure = find_failure(Ended(code, known, hosts))
    assert failure.kind == kind
    assert words in str(failure)
    assert failure.can_restart is can_restart


@pytest.mark.parametrize(
    ("num", "words"),
    [
        (2, "out-of-memory killer ended 2 here meanwhile). Too little memory: lower"),
        (0, "(not by this machine's out-of-memory killer: somebody sent it)."),
        (None, "(the usual cause is too little memory). Too little memory"),
    ],
)
def test_the_out_of_memory_killer(num: int | None, words: str) -> None:
    known = notes(LOST, note(1))
    assert words in str(find_failure(Ended(247, known, HERE, num_oom_kills=num)))


def hang(*some: RankNote, stacks: tuple[int, ...] = (0, 1)) -> str:
    known = notes(*some)
    failure = find_failure(Ended(-9, known, NODES, stacks=stacks, hang_seconds=60))
    assert failure.kind == "hang" and failure.can_restart
    return str(failure)


def test_a_rank_that_wrote_nothing_is_named() -> None:
    said = hang(note(0, "hung"), note(1, phase="step 5"), stacks=(0,))
    assert "no progress for 60 s. rank 1 (node-1) wrote no stacks (a process that is" in said
    assert "last seen in step 5, process 101 of vm" in said
    assert "rank 1 (node-1) wrote no stacks and never began" in hang(note(0, "hung"), stacks=(0,))


def test_a_rank_that_is_behind_is_named() -> None:
    waits = "all_reduce (distributed_c10d.py, line 3252)"
    reads = "read (files.py, line 7)"
    first = note(0, "hung", position=(9, 1, 0), where=waits)
    second = note(1, "hung", position=(9, 0, 7), where=reads)
    said = hang(first, second)
    assert f"rank 1 (node-1) had not come to where the others are (step 6, in {waits})" in said
    assert f"): step 6, in {reads}." in said


def test_ranks_at_the_same_place_are_told_by_what_they_do() -> None:
    said = hang(note(0, "hung", where="a (b.py, line 1)"), note(1, "hung", where="c (d.py)"))
    assert "All ranks stand at the same place, step 6: rank 0 (node-0) in a (b.py, line 1)" in said


def test_stacks_of_the_timer_mean_a_lock_that_is_held() -> None:
    said = hang(note(0, "hung"), note(1))
    assert "rank 1 (node-1) sits in C code that holds the interpreter's lock, in step 6" in said
