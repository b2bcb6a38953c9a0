"""Effective data transferred: how much target data pretraining stands for.

    D_T = D_E - D_F

D_F is the target data that was fine-tuned on, D_E that from which the same model, started from
random weights, reaches the same loss. D_E is read off the measured points of the random arm, its
loss taken to be linear in log D between two of them. Over several sizes D_T is described by

    D_T = k D_F^alpha

(Hernandez, Kaplan, Henighan and McCandlish, "Scaling Laws for Transfer", arXiv 2102.01293,
sections 1 and 2, for one size of model, so that the paper's N^beta is part of k). Small alpha: what
is transferred hardly grows with the target data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Equivalent:
    """Data from which random weights reach a loss."""

    amount: float
    """D_E, or the end of the measured sizes where it lies beyond."""
    bound: str = ""
    """`more`: more than the largest size measured; `less`: less than the smallest; else empty."""

    def transferred(self, fine_tuned: float) -> float:
        """D_T (or its bound) in the same unit."""
        return self.amount - fine_tuned


def equivalent_data(loss: float, random: Mapping[float, float]) -> Equivalent:
    """D_E of a loss.

    Args:
        random: size of the data > 0 -> loss reached from random weights, at least one.
    """
    sizes = sorted(random)
    if loss > random[sizes[0]]:
        return Equivalent(sizes[0], "less")
    for small, large in pairwise(sizes):
        high, low = random[small], random[large]
        if low <= loss <= high:
            share = 0.0 if high == low else (high - loss) / (high - low)
            return Equivalent(small * (large / small) ** share)
    if loss == random[sizes[0]]:
        return Equivalent(sizes[0])
    return Equivalent(sizes[-1], "more")


@dataclass(frozen=True)
class Fit:
    """D_T = k D_F^alpha through measured points, by least squares in logarithms."""

    k: float
    alpha: float
    num_points: int
    residual: float
    """Root mean square of the differences of the natural logarithms."""


def fit_power(points: Mapping[float, float]) -> Fit | None:
    """The fit through D_F -> D_T; None of fewer than three points above 0."""
    pairs = [(math.log(x), math.log(y)) for x, y in points.items() if x > 0 and y > 0]
    if len(pairs) < 3:
        return None
    mean_x = sum(x for x, _ in pairs) / len(pairs)
    mean_y = sum(y for _, y in pairs) / len(pairs)
    spread = sum((x - mean_x) ** 2 for x, _ in pairs)
    alpha = sum((x - mean_x) * (y - mean_y) for x, y in pairs) / spread
    start = mean_y - alpha * mean_x
    residual = math.sqrt(sum((y - start - alpha * x) ** 2 for x, y in pairs) / len(pairs))
    return Fit(math.exp(start), alpha, len(pairs), residual)
