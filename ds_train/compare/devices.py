"""How many runs go on at once, and which cores or GPUs each of them gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ds_train.errors import ConfigError
from ds_train.launch.world import World


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time."""

    threads: int
    """OMP_NUM_THREADS of each of its processes."""
    gpus: tuple[int, ...] = ()
    """The GPUs that it sees; none on a machine without."""
    shares_machine: bool = False
    """Other slots run beside it, so that a fixed master port would be taken."""

    def environment(self) -> dict[str, str]:
        """Variables of the processes of its run."""
        variables = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self.gpus))
        return variables


def make_slots(
    worlds: Sequence[World], parallel: int | None, num_runs: int, gpus: Sequence[int], cores: int
) -> list[Slot]:
    """Slots for runs of these worlds (one for each arm).

    Args:
        parallel: runs at once as asked for; as many as fit side by side when None.
        gpus: indices of this machine's GPUs; empty where the ranks run on the CPU.

    Raises:
        ConfigError: several at once were asked for, and one run takes several machines.
    """
    if any(not world.is_local for world in worlds):
        if parallel is not None and parallel > 1:
            raise ConfigError(
                f"compare.parallel = {parallel}: a run takes all machines of the hostfile; set it "
                "to 1, or remove it."
            )
        return [Slot(max(1, cores // _most_here(worlds)))]
    processes = _most_here(worlds)
    fitting = (len(gpus) or cores) // processes
    number = min(parallel or max(1, fitting), num_runs)
    threads = max(1, cores // (number * processes))
    return [
        Slot(threads, _share(gpus, place, processes), shares_machine=number > 1)
        for place in range(number)
    ]


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _most_here(worlds: Sequence[World]) -> int:
    """Most processes that a run has on one machine."""
    return max(len(slots) for world in worlds for slots in world.slots.values())


def _share(gpus: Sequence[int], place: int, processes: int) -> tuple[int, ...]:
    """GPUs of a slot; more slots than GPUs go round and share them."""
    if not gpus:
        return ()
    first = place * processes % len(gpus)
    return tuple(gpus[(first + offset) % len(gpus)] for offset in range(min(processes, len(gpus))))
