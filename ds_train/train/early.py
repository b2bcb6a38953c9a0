"""Early stopping: which evaluation is the best so far, and when enough of them were not better.

An improvement is a value better than the last improvement by more than min_delta; the first value
is one. The best value is the best of all, however small its lead, so that the checkpoint that is
kept is the best one. Both follow from the values alone, and what is needed to go on after a resume
stands in the checkpoint.

Worked example, patience 2, min_delta 0.1, values 3.0, 2.95, 2.85, 2.8, 2.9: improvements are 3.0
and 2.85 (2.95 and 2.8 are within 0.1 of them); 2.8 and 2.9 make two evaluations in a row without
one, and the run ends; the best is 2.8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.config.train import EarlyStoppingConfig
from ds_train.errors import ConfigError

_HIGHER_IS_BETTER = ("token_accuracy", "rank_accuracy")


def judge(
    facts: CheckpointFacts,
    numbers: Mapping[str, float | None],
    early: EarlyStoppingConfig | None,
) -> tuple[CheckpointFacts, bool]:
    """The facts after an evaluation, and whether it is the best so far.

    Args:
        numbers: metric -> value; without early stopping its `loss` decides.

    Raises:
        ConfigError: this run does not measure the metric of train.early_stopping.
    """
    metric = "loss" if early is None else early.metric
    value = numbers.get(metric)
    if value is None:
        raise ConfigError(
            f"train.early_stopping.metric = {metric}: the held-out data of this run does not have "
            "it; choose loss."
        )
    sign = -1.0 if metric in _HIGHER_IS_BETTER else 1.0
    before = facts.best_loss if metric == "loss" else facts.best_value
    best = not math.isnan(value) and (before is None or sign * value < sign * before)
    facts = replace(facts, evaluated_step=facts.step)
    if best and metric == "loss":
        facts = replace(facts, best_loss=value)
    elif best:
        facts = replace(facts, best_value=value)
    if early is None:
        return facts, best
    last = facts.improved_value
    if last is None or sign * (last - value) > early.min_delta:
        return replace(facts, improved_value=value, num_not_better=0), best
    num_not_better = facts.num_not_better + 1
    over = num_not_better >= early.patience
    return replace(facts, num_not_better=num_not_better, ended_early=over), best
