"""Communication of a run while it goes on: which steps are counted, and what is recorded of it.

Every step says how long each rank computed and stood still; the exchange that ends a step carries
the times. From time to time rank 0 asks in that exchange for one of the next steps to be counted
with DeepSpeed's logger (`engine/traffic.py`), which makes that step slower: the third one of a
process, and then so rarely that all of it stays under 1 % of the time.
"""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import fmean, median
from typing import Any

from ds_train.errors import DsTrainError
from ds_train.plan.traffic import predict_traffic
from ds_train.report.communication import CommunicationRecord
from ds_train.report.straggler import WINDOW, StragglerFinder, over_median, slowest_rank
from ds_train.report.traffic import Calls, Prediction, Summary, communication_record
from ds_train.train.run import Run
from ds_train.train.step import StepResult

_OVERHEAD = 0.01
"""Share of a run's time that counting may take."""
_PATIENCE = 10
"""Steps that are waited for one that is like most, where a run evaluates after every few."""
_USUAL_STEPS = 50
"""How many steps say how long one usually takes."""


class CommunicationWatch:
    """Decides, measures and records; on one rank, or where the recipe switches it off, nothing."""

    def __init__(self, run: Run, say: Callable[[str], Any]) -> None:
        """A collective call."""
        self._traffic, self._say = run.engine.traffic, say
        self._every = run.config.report.communication_every
        self._num_ranks = run.ranks.world_size
        self._row_ranks = run.ranks.sequence_parallel_size
        self.is_on = self._every > 0 and self._num_ranks > 1
        self.summary = Summary()
        self._is_main = run.ranks.is_main
        self._first = run.start.step + 3
        self._is_asked = self._is_counting = False
        self._num_asked = 0
        self._counted_step: int | None = None
        self._num_since = 0  # steps since then
        self._counted_seconds = 0.0
        self._counted: list[Calls] | None = None
        self._exposed: tuple[float, float] | None = None
        self._usual: deque[float] = deque(maxlen=_USUAL_STEPS)
        self._stragglers = StragglerFinder()
        self._hosts = run.ranks.texts(socket.gethostname()) if self.is_on else []
        self._prediction = self._predict(run) if self.is_on and self._is_main else None

    def _predict(self, run: Run) -> Prediction | None:
        on_cpu = run.ranks.device.type == "cpu"
        try:
            return predict_traffic(run.config, self._num_ranks, on_cpu=on_cpu)
        except DsTrainError as error:
            self._say(f"communication: recorded without the plan's numbers, as {error}")
            return None

    def step(self) -> AbstractContextManager[None]:
        """Around one step."""
        if not self.is_on:
            return nullcontext()
        self._num_asked = self._num_asked + 1 if self._is_asked else 0
        ready = self._traffic.settled or self._num_asked > _PATIENCE
        self._is_counting = self._is_asked and ready
        return self._traffic.watched(count=self._is_counting)

    def wants_count(self, step: int) -> bool:
        """Whether this rank asks, in step `step`, for the next one to be counted."""
        if not (self.is_on and self._is_main) or self._is_asked:
            return False
        return step + 1 >= self._due()

    def _due(self) -> int:
        if self._counted_step is None:
            return self._first
        usual = median(self._usual)
        cost = max(0.0, self._counted_seconds - usual)
        return self._counted_step + max(self._every, math.ceil(cost / (_OVERHEAD * usual)))

    def pace(self, step: int, result: StepResult, seconds: float) -> dict[str, Any]:
        """The fields of a step's record that tell of the ranks; to be called after each step.

        {} on all ranks but the one that records.
        """
        if not self.is_on:
            return {}
        self._is_asked = result.count_next or (self._is_asked and not self._is_counting)
        if self._is_counting:
            self._counted_step, self._counted_seconds = step, seconds
            self._counted, self._num_since = self._traffic.counted, 0
        else:
            self._usual.append(seconds)
            self._num_since += 1
        if not self._is_main:
            return {}
        compute, waiting = result.compute_seconds, result.waiting_seconds
        slowest, middle = slowest_rank(compute), median(compute)
        self._find_straggler(slowest, over_median(compute[slowest], middle))
        fields = {
            "compute_seconds_min": min(compute),
            "compute_seconds_median": middle,
            "compute_seconds_max": compute[slowest],
            "slowest_rank": slowest,
        }
        self._exposed = None
        if self._counted_step is None or self._num_since > 1:
            self._exposed = fmean(waiting), seconds
            fields |= {"exposed_seconds": fmean(waiting), "exposed_seconds_min": min(waiting)}
        return fields

    def _find_straggler(self, slowest: int, over: float) -> None:
        found = self._stragglers.add(slowest, over)
        if found is not None:
            rank, over = found
            self._say(
                f"rank {rank} on {self._hosts[rank]} holds the others up: it was the slowest in "
                f"most of the last {WINDOW} steps, and computed {over:.0%} longer than the median"
            )

    def record(self, step: int, *, last: bool = False) -> CommunicationRecord | None:
        """That of the counted step, once a step after it has shown what overlaps; on rank 0.

        `last`: no step follows, so what there is has to do.
        """
        if self._counted is None or self._counted_step is None or not self._is_main:
            return None
        if self._exposed is None and not last:
            return None
        calls, self._counted = self._counted, None
        exposed, seconds = self._exposed or (None, None)
        return communication_record(
            calls,
            self._prediction,
            step=step,
            counted_step=self._counted_step,
            counted_seconds=self._counted_seconds,
            num_ranks=self._num_ranks,
            exposed_seconds=exposed,
            step_seconds=seconds,
            row_ranks=self._row_ranks,
        )
