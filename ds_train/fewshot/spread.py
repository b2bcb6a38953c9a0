"""Mean and spread of a result over seeds, as few-shot results have to be given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """num, mean, sd, min, max, median and iqr of values that differ in their seed.

    sd is that of a sample (n - 1 below), None for one value alone: one seed says nothing about
    spread. Quartiles are interpolated linearly.
    """
    array = np.asarray(values, dtype=np.float64)
    low, middle, high = np.quantile(array, [0.25, 0.5, 0.75])
    return {
        "num": len(array),
        "mean": float(array.mean()),
        "sd": float(array.std(ddof=1)) if len(array) > 1 else None,
        "min": float(array.min()),
        "max": float(array.max()),
        "median": float(middle),
        "iqr": float(high - low),
    }
