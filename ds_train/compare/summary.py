"""The arithmetic of a comparison: mean and spread over seeds, differences within each seed.

Runs of one seed start from the same weights, so an arm is compared with the baseline seed by seed.
A mean difference that is smaller than its standard deviation over seeds is called no difference.
Standard deviations are those of a sample (n - 1 in the denominator).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from ds_train.compare.results import Point, RunResult
from ds_train.config.compare import LOWER_IS_BETTER, CompareConfig, split_metric


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of some numbers."""

    num: int
    mean: float
    sd: float | None
    """None of fewer than two numbers."""


@dataclass(frozen=True)
class ArmMetric:
    """One metric of one arm."""

    arm: str
    metric: str
    values: dict[int, float]
    """Seed -> value at the end."""
    spread: Spread
    differences: dict[int, float]
    """Seed -> value minus the baseline's of that seed; empty for the baseline."""
    difference: Spread | None
    num_better: int
    """Seeds in which the arm is better than the baseline."""
    verdict: str
    """`better`, `worse`, `no difference`, `one seed`, or empty where there is nothing to say."""


@dataclass(frozen=True)
class ArmSummary:
    """One arm at the learning rate that is compared."""

    arm: str
    rate: float | None
    runs: list[RunResult]
    metrics: list[ArmMetric]
    """In the order of compare.metrics."""
    tokens_to_reach: dict[int, int | None]
    """Seed -> tokens after which the arm has the baseline's final primary value of that seed; None
    where it never has it. Empty where the runs were measured at the end only."""


def summarise(
    results: Sequence[RunResult], compare: CompareConfig, rates: dict[str, float | None]
) -> list[ArmSummary]:
    """Every arm that has a finished run, in the recipe's order, each at its rate."""
    by_arm = {
        arm: [r for r in results if (r.arm, r.rate) == (arm, rates.get(arm))]
        for arm in compare.arms
    }
    baseline = {run.seed: run for run in by_arm[compare.baseline_arm]}
    return [
        ArmSummary(
            arm,
            rates.get(arm),
            runs,
            [
                compare_metric(arm, metric, runs, {} if is_baseline else baseline)
                for metric in compare.metrics
            ],
            {run.seed: _reach(run, baseline.get(run.seed), compare.metrics[0]) for run in runs}
            if all(len(run.curve) > 1 for run in runs)
            else {},
        )
        for arm, runs in by_arm.items()
        if runs
        for is_baseline in [arm == compare.baseline_arm]
    ]


def compare_metric(
    arm: str, metric: str, runs: Sequence[RunResult], baseline: dict[int, RunResult]
) -> ArmMetric:
    """A metric over the seeds of an arm, and against the seeds that the baseline has too."""
    values = {run.seed: run.values[metric] for run in runs}
    differences = {
        seed: value - baseline[seed].values[metric]
        for seed, value in values.items()
        if seed in baseline
    }
    sign = -1 if lower_is_better(metric) else 1
    difference = spread(list(differences.values())) if differences else None
    return ArmMetric(
        arm,
        metric,
        values,
        spread(list(values.values())),
        differences,
        difference,
        sum(sign * one > 0 for one in differences.values()),
        _verdict(difference, sign),
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation; at least one number."""
    return Spread(len(values), fmean(values), stdev(values) if len(values) > 1 else None)


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one."""
    return split_metric(metric)[1] in LOWER_IS_BETTER


def _verdict(difference: Spread | None, sign: int) -> str:
    if difference is None:
        return ""
    if difference.sd is None:
        return "one seed"
    if difference.mean == 0 or abs(difference.mean) < difference.sd:
        return "no difference"
    return "better" if sign * difference.mean > 0 else "worse"


def _reach(run: RunResult, baseline: RunResult | None, metric: str) -> int | None:
    """Tokens at the first measurement as good as the baseline's last; None where there is none."""
    if baseline is None:
        return None
    return first_reaching(run.curve, baseline.selected_by(metric), lower=lower_is_better(metric))


def first_reaching(curve: Sequence[Point], target: float, *, lower: bool) -> int | None:
    """Tokens at the first point of a curve that is as good as `target`."""
    for point in curve:
        if (point.value <= target) if lower else (point.value >= target):
            return point.tokens
    return None


def best_rates(results: Sequence[RunResult], compare: CompareConfig) -> dict[str, float | None]:
    """Arm -> the learning rate whose mean over seeds is best on the primary metric, on dev data
    where there is some.

    Rates that lack a seed which another rate has are passed over. Without a sweep all are None.
    """
    primary = compare.metrics[0]
    sign = -1 if lower_is_better(primary) else 1
    chosen: dict[str, float | None] = {}
    for arm in compare.arms:
        values: dict[float | None, list[float]] = {}
        for run in results:
            if run.arm == arm:
                values.setdefault(run.rate, []).append(run.selected_by(primary))
        most = max(map(len, values.values()), default=0)
        whole = {rate: found for rate, found in values.items() if len(found) == most}
        chosen[arm] = max(whole, key=lambda rate: sign * fmean(whole[rate]), default=None)
    return chosen
