"""The order in which choices are tried: a climb from the plan's shortlist, one change at a time.

First the recipe as it is, then the shortlist, then the neighbours of the best in micro-batch and
buckets. At the end the best and the recipe are measured again in turns, and the best is only
recommended if it was quicker every time: single timings of a shared machine say little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

from ds_train.tune.choice import Choice
from ds_train.tune.shortlist import Shortlist

_MOST_SMALLER = 3
"""Smaller micro-batches that are tried after one has run out of memory."""


@dataclass(frozen=True)
class Trial:
    """What one short run gave."""

    choice: Choice
    seconds: float | None
    """Median of a step; None where it failed."""
    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    """Of the rank that took most."""
    planned_bytes: int | None = None
    fault: str | None = None
    out_of_memory: bool = False


@dataclass(frozen=True)
class Verdict:
    """The recipe and the best choice, measured in turns."""

    best: Choice
    ratios: tuple[float, ...]
    """Seconds of the recipe by seconds of the best, round by round; empty where the recipe itself
    does not run."""

    @property
    def speedup(self) -> float | None:
        """Median of the ratios."""
        return median(self.ratios) if self.ratios else None

    @property
    def is_quicker(self) -> bool:
        """In every round; or the recipe does not run at all."""
        return min(self.ratios, default=float("inf")) > 1.0


class OutOfTrials(Exception):
    """The number of trials that was asked for is used up."""


class Search:
    """One search; `measure` makes a real run."""

    def __init__(
        self, shortlist: Shortlist, measure: Callable[[Choice], Trial], *, num_trials: int
    ) -> None:
        self._shortlist, self._measure = shortlist, measure
        self._left = num_trials
        self.trials: dict[Choice, Trial] = {}

    def climb(self, now: Choice) -> Choice | None:
        """The quickest choice found; None where none ran."""
        try:
            self._try(now)
            for candidate in self._shortlist.candidates():
                self._try_or_smaller(candidate.choice)
            self._climb_micro_batch()
            self._climb_buckets()
        except OutOfTrials:
            pass
        return self.best

    @property
    def best(self) -> Choice | None:
        """Of the trials so far."""
        ran = [one for one in self.trials.values() if one.seconds is not None]
        return min(ran, key=lambda one: one.seconds or 0.0).choice if ran else None

    def compare(self, now: Choice, best: Choice, rounds: int) -> Verdict:
        """Both measured again, in turns."""
        if best == now or self.trials[now].seconds is None:
            return Verdict(best, ())
        ratios = []
        for number in range(rounds):
            pair = (now, best) if number % 2 == 0 else (best, now)
            seconds = {choice: self._measure(choice).seconds for choice in pair}
            old, new = seconds[now], seconds[best]
            if new is None:  # it ran once and not twice: nothing to recommend
                return Verdict(best, (0.0,))
            if old is not None:
                ratios.append(old / new)
        return Verdict(best, tuple(ratios))

    def _try(self, choice: Choice) -> Trial:
        if choice not in self.trials:
            if self._left == 0:
                raise OutOfTrials
            self._left -= 1
            self.trials[choice] = self._measure(choice)
        return self.trials[choice]

    def _try_or_smaller(self, choice: Choice) -> None:
        for _ in range(_MOST_SMALLER):
            if not self._try(choice).out_of_memory:
                return
            size = self._shortlist.smaller(choice)
            if size is None:
                return
            choice = replace(choice, micro_batch_size=size)

    def _climb_micro_batch(self) -> None:
        for step in (self._shortlist.smaller, self._shortlist.larger):
            while (best := self.best) is not None and (size := step(best)) is not None:
                self._try(replace(best, micro_batch_size=size))
                if self.best == best:
                    break

    def _climb_buckets(self) -> None:
        best = self.best
        if best is None:
            return
        for key, size in self._shortlist.bucket_sizes(best):
            self._try((self.best or best).with_bucket(key, size))
