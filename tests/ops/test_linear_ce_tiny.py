"""Problems of a few numbers, where gradients are what is left of terms that cancel."""

from __future__ import annotations

import random

import pytest
import torch
from loss_cases import DTYPE_NAMES, DTYPES, Subject, check, make_inputs

PROBLEMS = 60


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NAMES)
def test_tiny_problems(subject: Subject, dtype: torch.dtype) -> None:
    draw = random.Random(1)
    for seed in range(PROBLEMS):
        shape = (draw.choice((1, 2, 3, 7)), draw.choice((1, 2, 3)), draw.choice((1, 2, 3, 5)))
        inputs = make_inputs(*shape, dtype, seed=seed, masked=0, spread=2.0, bias=True)
        check(subject, inputs, few_numbers=True)


@pytest.mark.parametrize(
    ("n", "d", "v", "seed"), [(2, 1, 2, 1473), (2, 1, 2, 359), (1, 1, 17, 414)]
)
def test_terms_that_cancel(best_subject: Subject, n: int, d: int, v: int, seed: int) -> None:
    """Two to five times the error that is allowed where terms don't cancel."""
    inputs = make_inputs(n, d, v, torch.bfloat16, seed=seed, masked=0, spread=2.0, bias=True)
    check(best_subject, inputs, few_numbers=True)
