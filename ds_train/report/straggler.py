"""Finds the rank that holds the others up, step after step.

Rule: over the last 50 steps the same rank was the slowest in at least 80 % of them, and in these it
computed on average at least 10 % longer than the median rank. It is said once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean

WINDOW = 50
OFTEN = 0.8
MUCH = 0.1


class StragglerFinder:
    """Takes the slowest rank of each step."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._is_said = False

    def add(self, rank: int, over: float) -> tuple[int, float] | None:
        """A step's slowest rank, and its share over the median rank.

        Returns rank and mean share, once the rule says so for the first time.
        """
        self._steps.append((rank, over))
        if self._is_said or len(self._steps) < WINDOW:
            return None
        shares = [share for slowest, share in self._steps if slowest == rank]
        if len(shares) < OFTEN * WINDOW or fmean(shares) < MUCH:
            return None
        self._is_said = True
        return rank, fmean(shares)


def over_median(longest: float, middle: float) -> float:
    """The share by which one rank computed longer than the median one."""
    return longest / middle - 1 if middle > 0 else 0.0


def slowest_rank(compute_seconds: Sequence[float]) -> int:
    """The first of those that computed longest."""
    return max(range(len(compute_seconds)), key=compute_seconds.__getitem__)
