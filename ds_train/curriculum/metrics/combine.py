"""Several difficulties in one: the mean of their ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ds_train.curriculum.metrics.tokens import Floats


def cdf_ranks(values: NDArray[np.floating]) -> Floats:
    """float64 [N] in (0, 1]: share of the samples that are as hard as each one, or easier.

    F(d) of Platanios et al. 2019 (arXiv:1903.09848), section 2.1; equal values have equal ranks.
    """
    order = np.argsort(values)
    last = np.flatnonzero(np.diff(values[order], append=np.inf))  # of each run of equal values
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(last + 1, np.diff(last, prepend=-1)) / len(values)
    return ranks


def mean_rank(parts: Sequence[NDArray[np.floating]]) -> Floats:
    """float64 [N]: mean of the ranks of several difficulties, each [N]."""
    total = np.zeros(len(parts[0]))
    for part in parts:
        total += cdf_ranks(part)
    return total / len(parts)
