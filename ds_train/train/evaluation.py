"""One evaluation of a run on its held-out data: what is measured, recorded and judged."""

from __future__ import annotations

import math
import time
from typing import Any

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.report.record import EvaluationRecord
from ds_train.train.early import judge
from ds_train.train.run import Run
from ds_train.train.step import evaluate_batches


def evaluate_held_out(run: Run, facts: CheckpointFacts) -> tuple[CheckpointFacts, EvaluationRecord]:
    """The facts after an evaluation, and its record; a collective call.

    Raises ConfigError where train.early_stopping waits for what this run does not measure.
    """
    began = time.perf_counter()
    result = evaluate_batches(run.engine, run.build_validation(), run.data.evaluated)
    shares = run.rank() if run.config.evaluate.rank_classification else {}
    numbers: dict[str, Any] = {
        "loss": result.loss,
        "perplexity": math.exp(min(result.loss, 700.0)),
        "bits_per_byte": result.bits_per_byte,
        "token_accuracy": result.token_accuracy,
        "rank_accuracy": shares.get("rank_accuracy"),
    }
    facts, best = judge(facts, numbers, run.config.train.early_stopping)
    return facts, EvaluationRecord(
        step=facts.step,
        tokens=result.num_tokens,
        seconds=time.perf_counter() - began,
        best=best,
        rank_chance=shares.get("rank_chance"),
        **numbers,
    )
