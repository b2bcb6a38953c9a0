"""Runs as one of the ranks: steps of one training, watched and not watched in turns.

usage: deepspeed ... communication_worker.py PLAN.json
The plan is a list of {"name", "recipe", "pairs", "block", "slow"}; NAME.json gets the results.

The same training makes blocks of steps that are watched as in a run (`train/communication.py`), and
blocks that are not, in turns, so that both see the same weights, memory and machine. `slow`: rank 1
sleeps so many seconds before each forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from plan_worker import work_through

from ds_train.config.run import RunConfig
from ds_train.data.prepare import prepare_data
from ds_train.engine.ranks import Ranks
from ds_train.train.communication import CommunicationWatch
from ds_train.train.run import Run
from ds_train.train.setup import set_up
from ds_train.train.step import StepResult, train_step

WARM_STEPS = 6
OWN_STEPS, OWN_CALLS = 2_000, 5_000


class Training:
    """One training whose steps may be watched."""

    def __init__(self, config: RunConfig, ranks: Ranks, *, slow: float) -> None:
        self.run: Run = set_up(config, ranks, prepare_data(config, _silent), _silent)
        self.watch = CommunicationWatch(self.run, _silent)
        self.step = self.num_watched = 0
        self.fields: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        if slow and ranks.rank == 1:
            engine: Any = self.run.engine
            engine.forward = _slowed(engine.forward, slow)

    def train(self, num_steps: int, *, watched: bool) -> tuple[float, float]:
        """Wall and CPU seconds of some steps, without building their rows."""
        run = self.run
        batches = [run.build_batches(self.step + number) for number in range(num_steps)]
        run.ranks.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        for mine in batches:
            if watched:
                self._watched_step(mine)
            else:
                train_step(run.engine, mine, **self._settings())
            self.step += 1
        return time.perf_counter() - wall, time.process_time() - cpu

    def _settings(self) -> dict[str, Any]:
        return {"objective": self.run.objective(self.step), "learning_rate": 1e-4, "stop": False}

    def _watched_step(self, batches: list[Any]) -> None:
        """What `train/loop.py` does; a watched step has a number of its own."""
        watch, began, cpu = self.watch, time.perf_counter(), time.process_time()
        self.num_watched += 1
        with watch.step():
            wish = watch.wants_count(self.num_watched)
            result = train_step(self.run.engine, batches, **self._settings(), count_next=wish)
        seconds = time.perf_counter() - began
        fields = watch.pace(self.num_watched, result, seconds)
        cpu = time.process_time() - cpu
        self.fields.append({**fields, "seconds": seconds, "cpu_seconds": cpu})
        if (record := watch.record(self.num_watched)) is not None:
            self.records.append(asdict(record))


def _slowed(forward: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def late(*args: Any) -> Any:
        time.sleep(seconds)
        return forward(*args)

    return late


def _silent(text: str) -> None:
    pass


def _nothing(*args: Any) -> None:
    """A collective that returns at once."""


def compare(item: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Blocks of both kinds in turns; which of them goes first changes."""
    config = RunConfig.model_validate(item["recipe"])
    training = Training(config, ranks, slow=item.get("slow", 0.0))
    training.train(WARM_STEPS, watched=True)
    times: dict[str, list[tuple[float, float]]] = {"plain": [], "watched": []}
    for number in range(item["pairs"]):
        for name in ("plain", "watched") if number % 2 else ("watched", "plain"):
            times[name].append(training.train(item["block"], watched=name == "watched"))
    return {
        "times": times,
        "records": training.records,
        "fields": training.fields,
        "own": own_cost(training),
    }


def own_cost(training: Training) -> dict[str, float]:
    """CPU seconds that watching by itself takes of a step, a call, a call in a counted step."""
    watch, traffic, number = training.watch, training.run.engine.traffic, training.num_watched
    times = [0.5] * training.run.ranks.world_size
    result = StepResult(
        1.0, {}, 1.0, stop=False, peak_memory_bytes=0, compute_seconds=times, waiting_seconds=times
    )
    began = time.process_time()
    for _ in range(OWN_STEPS):
        with watch.step():
            watch.wants_count(number)
            traffic.lap()
        watch.pace(number, result, 1.0)
    a_step = (time.process_time() - began) / OWN_STEPS
    comm, tensor = traffic._comm, torch.zeros(1)
    comm.cdb.all_reduce = _nothing
    try:
        plain = _seconds_of(comm.all_reduce, tensor)
        with traffic.watched():
            watched = _seconds_of(comm.all_reduce, tensor)
        with traffic.watched(count=True):
            counted = _seconds_of(comm.all_reduce, tensor)
    finally:
        del comm.cdb.all_reduce
    return {"step": a_step, "call": watched - plain, "counted_call": counted - plain}


def _seconds_of(call: Callable[..., Any], *args: Any) -> float:
    """CPU seconds of one call, mean of many."""
    began = time.process_time()
    for _ in range(OWN_CALLS):
        call(*args)
    return (time.process_time() - began) / OWN_CALLS


if __name__ == "__main__":
    work_through(compare)
