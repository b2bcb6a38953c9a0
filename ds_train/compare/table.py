"""The table of a comparison as Markdown, and all of its numbers as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from ds_train.compare.children import Outcome
from ds_train.compare.results import RunResult
from ds_train.compare.summary import (
    ArmMetric,
    ArmSummary,
    Spread,
    lower_is_better,
    spread,
)
from ds_train.config.compare import CompareConfig
from ds_train.report.markdown import as_table


def markdown(
    arms: Sequence[ArmSummary],
    compare: CompareConfig,
    results: Sequence[RunResult],
    failed: Sequence[Outcome],
) -> str:
    """One table for each metric, and what has to be said beside them."""
    parts = []
    for place, metric in enumerate(compare.metrics):
        what = ["primary"] if place == 0 and len(compare.metrics) > 1 else []
        what.append("lower is better" if lower_is_better(metric) else "higher is better")
        parts += [f"**{metric}** ({', '.join(what)})", ""]
        parts += _table([_row(arm, arm.metrics[place], compare) for arm in arms], compare)
        parts.append("")
    if reach := _reach_lines(arms, compare):
        parts += [*reach, ""]
    if compare.learning_rates is not None:
        parts += [*rate_lines(arms, compare, results), ""]
    parts += [*_notes(arms, compare), *_rolled_back_lines(results), *failed_lines(failed)]
    return "\n".join(parts).rstrip() + "\n"


def _table(rows: list[list[str]], compare: CompareConfig) -> list[str]:
    head = ["arm", "seeds", "updates", "tokens", "mean (sd)"]
    head += [
        f"difference to {compare.baseline_arm}, seed by seed",
        "its mean (sd)",
        "seeds better",
        "verdict",
    ]
    if compare.learning_rates is not None:
        head.insert(1, "learning rate")
    return as_table(head, rows)


def _row(arm: ArmSummary, metric: ArmMetric, compare: CompareConfig) -> list[str]:
    cells = [
        arm.arm,
        str(len(arm.runs)),
        _mean_count([run.updates for run in arm.runs]),
        _mean_count([run.tokens for run in arm.runs]),
        format_spread(metric.spread),
    ]
    if metric.difference is None:
        cells += ["", "", "", "baseline" if arm.arm == compare.baseline_arm else "no common seed"]
    else:
        cells += [
            " ".join(f"{value:+.4f}" for value in metric.differences.values()),
            format_spread(metric.difference, sign="+"),
            f"{metric.num_better} of {metric.difference.num}",
            metric.verdict,
        ]
    if compare.learning_rates is not None:
        cells.insert(1, "the recipe's" if arm.rate is None else f"{arm.rate:g}")
    return cells


def format_spread(numbers: Spread, sign: str = "") -> str:
    """`0.9312 (0.0504)`; the mean alone where there is no spread."""
    text = f"{numbers.mean:{sign}.4f}"
    return text if numbers.sd is None else f"{text} ({numbers.sd:.4f})"


def _mean_count(counts: Sequence[int]) -> str:
    return f"{round(fmean(counts)):,}"


def _reach_lines(arms: Sequence[ArmSummary], compare: CompareConfig) -> list[str]:
    """Tokens until the baseline's final value, for arms that were measured along the way."""
    base = compare.baseline_arm
    rows = []
    for arm in arms:
        found = [tokens for tokens in arm.tokens_to_reach.values() if tokens is not None]
        if not arm.tokens_to_reach:
            continue
        total = len(arm.tokens_to_reach)
        mean = "" if not found else format_millions(spread(found))
        rows.append([arm.arm, f"{len(found)} of {total}", mean])
    if not rows:
        return []
    title = f"Tokens until {compare.metrics[0]} was first measured as good as {base} ends, per seed"
    head = ["arm", "seeds that got there", "their tokens, mean (sd)"]
    return [f"{title}:", "", *as_table(head, rows)]


def format_millions(numbers: Spread) -> str:
    """`0.812M (0.040M)`."""
    text = f"{numbers.mean / 1e6:.3f}M"
    return text if numbers.sd is None else f"{text} ({numbers.sd / 1e6:.3f}M)"


def rate_lines(
    arms: Sequence[ArmSummary], compare: CompareConfig, results: Sequence[RunResult]
) -> list[str]:
    """Every rate of the sweep, and whether the best one lies at its edge."""
    primary = compare.metrics[0]
    rates = sorted({rate for arm in compare.arms for rate in compare.rates_of(arm) or ()})
    on_dev = all(run.dev is not None for run in results)
    where = f"{primary} on dev data" if on_dev else primary
    lines = [f"{where} at each learning rate, mean (sd); the best one of each arm is compared:"]
    rows = []
    for arm in arms:
        cells = [arm.arm]
        for rate in rates:
            of_rate = [run for run in results if (run.arm, run.rate) == (arm.arm, rate)]
            text = "" if rate not in (compare.rates_of(arm.arm) or ()) else "failed"
            if of_rate:
                text = format_spread(spread([run.selected_by(primary) for run in of_rate]))
            cells.append(f"**{text}**" if rate == arm.rate else text)
        rows.append(cells)
    lines += ["", *as_table(["arm", *(f"{rate:g}" for rate in rates)], rows)]
    chosen = "The rate was chosen on the data that the table measures."
    if on_dev:
        chosen = "The rate was chosen on dev data, which the other tables do not measure."
    lines += ["", chosen]
    if edge := at_edge(arms, compare):
        lines[-1] += f" At the edge of the grid: {', '.join(edge)}; a wider one may do better."
    return lines


def at_edge(arms: Sequence[ArmSummary], compare: CompareConfig) -> list[str]:
    """Arms whose best learning rate is the smallest or the largest that they were trained with."""
    grids = {arm.arm: compare.rates_of(arm.arm) or [] for arm in arms}
    return [
        arm.arm
        for arm in arms
        if len(grids[arm.arm]) > 1 and arm.rate in (grids[arm.arm][0], grids[arm.arm][-1])
    ]


def _notes(arms: Sequence[ArmSummary], compare: CompareConfig) -> list[str]:
    lines = [
        "Differences are taken within each seed, whose runs start from the same weights. No "
        "difference: the mean is smaller than its standard deviation over seeds."
    ]
    if len(compare.seeds) < 2:
        lines = ["One seed: there is no spread, and nothing can be concluded from a difference."]
    if compare.baseline_arm not in [arm.arm for arm in arms]:
        lines.append(f"The baseline {compare.baseline_arm} has no finished run.")
    return lines


def _rolled_back_lines(results: Sequence[RunResult]) -> list[str]:
    """A paragraph for each run that did not train on all rows of the others."""
    lines = []
    for run in results:
        if run.rolled_back:
            steps = ", ".join(f"{step:,}" for step in run.rolled_back)
            what = f"the samples of step{'s' if len(run.rolled_back) > 1 else ''} {steps} are left"
            lines += ["", f"Rolled back: {run.name}: {what} out; `ds-train report` says why."]
    return lines


def failed_lines(failed: Sequence[Outcome]) -> list[str]:
    """A paragraph for each run that failed."""
    lines = []
    for outcome in failed:
        lines += ["", f"Failed: {outcome.spec.name}: {outcome.fault}"]
    return lines


def as_json(
    arms: Sequence[ArmSummary],
    compare: CompareConfig,
    results: Sequence[RunResult],
    failed: Sequence[Outcome],
) -> dict[str, Any]:
    """Everything that the table is made of."""
    return {
        "compare": compare.model_dump(mode="json"),
        "baseline": compare.baseline_arm,
        "arms": [
            {
                "arm": arm.arm,
                "learning_rate": arm.rate,
                "seeds": [run.seed for run in arm.runs],
                "updates": [run.updates for run in arm.runs],
                "tokens": [run.tokens for run in arm.runs],
                "metrics": [asdict(metric) for metric in arm.metrics],
                "tokens_to_reach_baseline": arm.tokens_to_reach,
            }
            for arm in arms
        ],
        "runs": [asdict(run) for run in results],
        "failed": [{"run": one.spec.name, "reason": one.fault} for one in failed],
    }
