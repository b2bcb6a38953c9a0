"""The `compare` section: which variants of a recipe are trained side by side, what is measured.

`ds-train train` ignores it; `ds-train compare` makes a run of every arm and seed.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, field_validator

from ds_train.config.base import Count, Natural, Section

EQUAL_UPDATES = "equal_updates_to"
"""Key of an arm that is no setting: the arm whose number of optimizer steps it takes."""

RECORDED = ("loss", "perplexity", "token_accuracy", "bits_per_byte", "rank_accuracy")
"""Metrics that a run's own evaluations record; the last with evaluate.rank_classification."""

RANK_METRICS = (
    "rank_accuracy",
    "rank_accuracy_none",
    "rank_accuracy_tokens",
    "rank_accuracy_chars",
    "rank_accuracy_bytes",
)
"""Of rank classification; `rank_accuracy` is that of `tokens` (fewshot/ranking.py)."""

METRICS = (*RECORDED, "exact_match", *RANK_METRICS[1:])
"""Metrics that `ds-train evaluate` measures, of all data and of each source."""

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte")

_FIXED = {
    "output_dir": "each run has a folder of its own",
    "train.seed": "compare.seeds says it for all arms",
    "compare": "it holds for all arms",
    "cluster.master_port": "each run has a port of its own",
}


def split_shots(metric: str) -> tuple[str | None, str]:
    """(number of demonstrations or None, rest) of `shots.4.loss` or `loss`."""
    match = re.fullmatch(r"shots\.(\d+)\.(.+)", metric)
    return (match[1], match[2]) if match else (None, metric)


def split_metric(metric: str) -> tuple[str | None, str]:
    """(source or None, name) of `loss` or `sources.NAME.loss`, perhaps behind `shots.4.`; NAME may
    have dots.

    Raises ValueError with the rule.
    """
    source, name = None, split_shots(metric)[1]
    if match := re.fullmatch(r"sources\.(.+)\.(\w+)", name):
        source, name = match[1], match[2]
    if name in METRICS:
        return source, name
    near = get_close_matches(name, METRICS, n=1)
    hint = f". Did you mean {metric.removesuffix(name)}{near[0]}?" if near else ""
    raise ValueError(
        f"{metric!r} is not measured; there are {', '.join(METRICS)}, and of one source "
        f"sources.NAME.loss and so on (sources.mean.loss: the mean over all sources){hint}"
    )


def _arms(value: Any) -> Any:
    """An arm with nothing under it changes nothing."""
    if not isinstance(value, dict):
        return value
    return {name: {} if changes is None else changes for name, changes in value.items()}


class CompareConfig(Section):
    """Arms x seeds, trained alike: within a seed all arms start from the same weights."""

    arms: Annotated[dict[str, dict[str, Any]], BeforeValidator(_arms)]
    """Name -> settings laid over the recipe, e.g. `{lora: {adapter.method: lora}}`. A section given
    whole replaces the recipe's. `equal_updates_to: ARM` takes that arm's number of steps."""

    seeds: list[Natural] = [0, 1, 2]
    """train.seed of each repetition; two or more show a spread."""

    baseline: str | None = None
    """Arm that the others are compared with; the first one when left out."""

    metrics: list[str] = ["loss"]
    """Measured on data.validation at the end: `loss`, `perplexity`, `bits_per_byte`,
    `token_accuracy`, `exact_match`; of one source `sources.NAME.loss`, the mean over them
    `sources.mean.loss`; of episodes with 4 demonstrations `shots.4.loss`. The first one is the
    primary metric."""

    learning_rates: list[float] | dict[str, list[float]] | None = None
    """Each arm is trained with each of these (or its own, by name of the arm); the best one on the
    primary metric is compared: chosen on data.dev (or fewshot.subset.dev) where there is one."""

    every_checkpoint: bool = False
    """Measure every checkpoint that checkpoint.keep leaves, not only the last one: shows how many
    tokens an arm needs for what metrics.jsonl does not record."""

    parallel: Count | None = None
    """Runs at once, each with the memory of a whole run; as many as cores (or GPUs) are there for
    when left out."""

    def rates_of(self, arm: str) -> list[float] | None:
        """Learning rates that an arm is trained with, ascending; None for that of its recipe."""
        rates = self.learning_rates
        return rates.get(arm) if isinstance(rates, dict) else rates

    @property
    def baseline_arm(self) -> str:
        """The arm that the others are compared with."""
        return self.baseline or next(iter(self.arms))

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if not arms:
            raise ValueError("is empty; name at least one arm, e.g. {lora: {adapter.method: lora}}")
        for name, changes in arms.items():
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise ValueError(
                    f'the name "{name}" becomes a folder; use letters, digits, and _ . + - inside'
                )
            _check_changes(name, changes)
            _check_reference(name, changes.get(EQUAL_UPDATES), arms)
        return arms

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        if not seeds:
            raise ValueError("is empty; name at least one seed, e.g. [0, 1, 2]")
        if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise ValueError(f"has {twice[0]} twice; a run is made once")
        return seeds

    @field_validator("baseline")
    @classmethod
    def _check_baseline(cls, baseline: str | None, info: ValidationInfo) -> str | None:
        arms = info.data.get("arms")
        if baseline is not None and arms is not None and baseline not in arms:
            raise ValueError(_no_such_arm(baseline, arms))
        return baseline

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, metrics: list[str]) -> list[str]:
        if not metrics:
            raise ValueError("is empty; name at least one metric, e.g. [loss]")
        for metric in metrics:
            split_metric(metric)
        return list(dict.fromkeys(metrics))

    @field_validator("learning_rates")
    @classmethod
    def _check_rates(cls, rates: Any, info: ValidationInfo) -> Any:
        if rates is None:
            return None
        arms = info.data.get("arms") or {}
        for arm in rates if isinstance(rates, dict) and arms else ():
            if arm not in arms:
                raise ValueError(f"{arm} {_no_such_arm(arm, arms)}")
        grids = list(rates.values()) if isinstance(rates, dict) else [rates]
        if not grids or any(not grid or min(grid) <= 0 for grid in grids):
            raise ValueError("must be a list of numbers over 0, e.g. [1e-4, 3e-4, 1e-3]")
        if isinstance(rates, dict):
            return {arm: sorted(set(grid)) for arm, grid in rates.items()}
        return sorted(set(rates))


def _check_changes(name: str, changes: dict[str, Any]) -> None:
    for key in changes:
        section = key.split(".")[0]
        for fixed in {key, section} & _FIXED.keys():
            raise ValueError(f"arm {name} sets {key}, which no arm can: {_FIXED[fixed]}")


def _check_reference(name: str, reference: Any, arms: dict[str, dict[str, Any]]) -> None:
    """`equal_updates_to` must name another arm, which has a length of its own."""
    if reference is None:
        return
    if reference == name or reference not in arms:
        raise ValueError(
            f"arm {name}: {EQUAL_UPDATES} = {reference} {_no_such_arm(reference, arms)}"
        )
    if EQUAL_UPDATES in arms[reference]:
        raise ValueError(
            f"arm {name}: {EQUAL_UPDATES} = {reference}, which itself has {EQUAL_UPDATES}; "
            f"name {arms[reference][EQUAL_UPDATES]}"
        )


def _no_such_arm(name: Any, arms: dict[str, Any]) -> str:
    near = get_close_matches(str(name), arms, n=1)
    hint = f". Did you mean {near[0]}?" if near else ""
    return f"is not one of the (other) arms {', '.join(arms)}{hint}"
