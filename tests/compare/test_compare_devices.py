"""Runs at once: cores and GPUs are dealt out, none is left and none is asked too much."""

from __future__ import annotations

import pytest

from ds_train.compare.devices import Slot, make_slots
from ds_train.errors import ConfigError
from ds_train.launch.world import World


def world(processes: int, hostfile: str | None = None, gpus: int = 0) -> World:
    """So many ranks on this machine."""
    return World({"localhost": list(range(processes))}, hostfile, gpus, None)


@pytest.mark.parametrize(
    ("processes", "cores", "parallel", "num_runs", "slots", "threads"),
    [
        (1, 2, None, 10, 2, 1),
        (2, 2, None, 10, 1, 1),
        (1, 8, None, 10, 8, 1),
        (1, 8, None, 4, 4, 2),
        (2, 8, None, 10, 4, 1),
        (1, 8, 2, 10, 2, 4),
        (4, 2, None, 10, 1, 1),
        (1, 1, 3, 10, 3, 1),
    ],
)
def test_cores(
    processes: int, cores: int, parallel: int | None, num_runs: int, slots: int, threads: int
) -> None:
    found = make_slots([world(processes)], parallel, num_runs, [], cores)
    assert found == [Slot(threads, (), shares_machine=slots > 1)] * slots


def test_gpus_are_dealt_out() -> None:
    found = make_slots([world(2, gpus=6)], None, 10, [2, 3, 4, 5, 6, 7], 32)
    assert [slot.gpus for slot in found] == [(2, 3), (4, 5), (6, 7)]
    assert {slot.threads for slot in found} == {5}
    assert found[1].environment()["CUDA_VISIBLE_DEVICES"] == "4,5"


def test_more_runs_than_gpus_share_them() -> None:
    found = make_slots([world(1, gpus=2)], 4, 10, [0, 1], 16)
    assert [slot.gpus for slot in found] == [(0,), (1,), (0,), (1,)]


def test_the_arm_with_most_processes_decides() -> None:
    assert len(make_slots([world(1), world(4)], None, 10, [], 8)) == 2


def test_several_machines_run_one_at_a_time() -> None:
    remote = world(8, hostfile="hosts", gpus=8)
    assert len(make_slots([remote], None, 10, list(range(8)), 64)) == 1
    with pytest.raises(ConfigError) as refusal:
        make_slots([remote], 2, 10, list(range(8)), 64)
    assert str(refusal.value) == (
        "compare.parallel = 2: a run takes all machines of the hostfile; set it to 1, or remove it."
    )


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    variables = Slot(3).environment()
    assert variables["OMP_NUM_THREADS"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in variables
