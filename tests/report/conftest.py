"""One step and one evaluation, as records."""

from __future__ import annotations

import math

import pytest

from ds_train.report.record import EvaluationRecord, StepRecord


@pytest.fixture
def step_record() -> StepRecord:
    """A plausible step."""
    return StepRecord(
        step=1,
        loss=2.5,
        grad_norm=0.5,
        learning_rate=1e-3,
        tokens=100,
        supervised_tokens=40,
        total_tokens=100,
        seconds=0.5,
        tokens_per_second=200.0,
        peak_memory_bytes=123_456,
    )


@pytest.fixture
def evaluation_record() -> EvaluationRecord:
    """A plausible evaluation."""
    return EvaluationRecord(
        step=2,
        loss=1.0,
        perplexity=math.e,
        token_accuracy=0.75,
        tokens=40,
        seconds=0.1,
        best=True,
    )
