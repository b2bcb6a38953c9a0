"""How much ZeRO-3 gathers in a micro-batch: DeepSpeed's fetching and releasing, played through.

After two micro-batches DeepSpeed 0.19 knows the order in which modules run. It gathers a module's
parameters when they are needed, or ahead of that (`stage3_prefetch_bucket_size`); it keeps them
where they are needed again within `stage3_max_reuse_distance` elements. This follows
`partitioned_param_coordinator.py` step by step, for the order that `execution.py` says. Compared
with what its communication logger counts in `benchmarks/results/plan_accuracy.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ds_train.plan.execution import Unit, backward_order, forward_order
from ds_train.plan.trainable import Parameter, Trainable

_SETTINGS = (
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)


@dataclass(frozen=True)
class Gathers:
    """All-gathers of one micro-batch on a rank, in elements of whole parameters."""

    forward_elements: int
    backward_elements: int
    calls: int
    peak_elements: int
    """Most that was whole at once, persistent parameters left out."""
    persistent_elements: int
    """Never sharded in effect: gathered once a step, after the update, and kept."""
    persistent_calls: int
    """One for each of them."""

    @property
    def elements(self) -> int:
        """Both ways."""
        return self.forward_elements + self.backward_elements


@dataclass(frozen=True)
class _Visit:
    """A module's turn: what it needs, and whether it is recomputed or goes backward."""

    parameters: tuple[Parameter, ...]
    forward: bool
    recompute: bool = False
    holds: bool = False
    """Releases nothing when it is over."""
    ends: tuple[Parameter, ...] = ()
    """No turn of its own: what an earlier one has held is released."""


def play(trainable: Trainable, zero: dict[str, int], *, recompute: bool) -> Gathers:
    """One micro-batch. `zero`: the stage-3 settings of the DeepSpeed config."""
    return _play(trainable, *(int(zero[name]) for name in _SETTINGS), recompute)


@lru_cache(maxsize=64)
def _play(
    trainable: Trainable, threshold: int, bucket: int, live: int, reuse: int, recompute: bool
) -> Gathers:
    visits = _visits(forward_order(trainable), trainable, recompute=recompute)
    return _Coordinator(visits, threshold, bucket, live, reuse).run()


def _visits(units: Sequence[Unit], trainable: Trainable, *, recompute: bool) -> list[_Visit]:
    backward = backward_order(units, trainable, recompute=recompute)
    visits = [_Visit((), forward=True)]  # the whole model's own turn: it owns nothing
    visits += [_Visit(unit.parameters, forward=True) for unit in units]
    layer_units: dict[int, list[Unit]] = {}
    for unit in units:
        if unit.layer is not None:
            layer_units.setdefault(unit.layer, []).append(unit)
    current: int | None = None
    for unit in backward:
        if recompute and unit.layer is not None and unit.layer != current:
            # backward begins with the layer's last module, and that starts the recomputation
            again = layer_units[unit.layer]
            last = again[-1].owner
            visits.append(_Visit(unit.parameters, forward=False, holds=True))
            visits += [
                _Visit(one.parameters, forward=True, recompute=True, holds=one.owner == last)
                for one in again
            ]
            visits.append(_Visit((), forward=False, ends=unit.parameters))
        else:
            visits.append(_Visit(unit.parameters, forward=False))
        current = unit.layer
    return visits


class _Coordinator:
    """DeepSpeed's PartitionedParameterCoordinator with a complete trace."""

    def __init__(
        self, visits: list[_Visit], threshold: int, bucket: int, live: int, reuse: int
    ) -> None:
        self._visits = visits
        self._persistent = {
            one.name: one.num_elements
            for visit in visits
            for one in visit.parameters
            if one.num_elements <= threshold
        }
        self._bucket, self._max_live, self._reuse = bucket, live, reuse
        self._queue = [(step, one) for step, visit in enumerate(visits) for one in visit.parameters]
        self._place = 0
        self._fetched_until: dict[str, int] = {}
        self._here: dict[str, int] = {}
        self._live = self._peak = self._calls = 0
        self._gathered = {True: 0, False: 0}
        self._prefix, self._next_use = self._look_ahead()

    def _look_ahead(self) -> tuple[list[int], list[dict[str, int]]]:
        """Elements of all visits before each one, and where a parameter comes again."""
        prefix = [0]
        for visit in self._visits:
            prefix.append(prefix[-1] + sum(one.num_elements for one in visit.parameters))
        later: dict[str, int] = {}
        next_use: list[dict[str, int]] = []
        for step in reversed(range(len(self._visits))):
            visit = self._visits[step]
            names = [one.name for one in visit.parameters]
            held = [one.name for one in visit.ends]
            next_use.append({name: later[name] for name in names + held if name in later})
            later.update(dict.fromkeys(names, step))
        return prefix, next_use[::-1]

    def run(self) -> Gathers:
        for step, visit in enumerate(self._visits):
            if not visit.ends:
                self._gather(list(visit.parameters), forward=visit.forward)
                self._prefetch(step, visit)
            self._release(step, visit)
        return Gathers(
            forward_elements=self._gathered[True],
            backward_elements=self._gathered[False],
            calls=self._calls,
            peak_elements=self._peak,
            persistent_elements=sum(self._persistent.values()),
            persistent_calls=len(self._persistent),
        )

    def _gather(self, parameters: list[Parameter], *, forward: bool) -> None:
        missing = {
            one.name: one.num_elements
            for one in parameters
            if one.name not in self._here and one.name not in self._persistent
        }
        if missing:
            self._here |= missing
            size = sum(missing.values())
            self._gathered[forward] += size
            self._live += size
            self._peak = max(self._peak, self._live)
            self._calls += 1

    def _prefetch(self, step: int, visit: _Visit) -> None:
        waiting = {
            one.name for one in visit.parameters if self._fetched_until.get(one.name, -1) < step
        }
        while waiting and self._place < len(self._queue):
            used_at, one = self._queue[self._place]
            self._place += 1
            self._fetched_until[one.name] = used_at
            waiting.discard(one.name)
        room = min(self._max_live - self._live, self._bucket)
        ahead: dict[str, Parameter] = {}
        size = 0
        while self._place < len(self._queue) and size < room:
            used_at, one = self._queue[self._place]
            self._place += 1
            until = self._fetched_until.get(one.name, -1)
            self._fetched_until[one.name] = max(until, used_at)
            if one.name in self._here or one.name in self._persistent or one.name in ahead:
                continue
            ahead[one.name] = one
            size += one.num_elements
        self._gather(list(ahead.values()), forward=visit.forward)

    def _release(self, step: int, visit: _Visit) -> None:
        for one in visit.ends or visit.parameters:
            if one.name in self._persistent or one.name not in self._here:
                continue
            if not self._stays(step, visit, one):
                self._live -= self._here.pop(one.name)

    def _stays(self, step: int, visit: _Visit, one: Parameter) -> bool:
        if visit.recompute and not one.trains:
            return False  # what is recomputed releases its frozen weights whatever comes
        if visit.holds:
            return True
        if self._fetched_until.get(one.name, -1) > step + 1:
            return True
        again = self._next_use[step].get(one.name)
        return again is not None and (self._prefix[again] - self._prefix[step + 1] < self._reuse)
