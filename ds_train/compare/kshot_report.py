"""What `ds-train fewshot` leaves behind: fewshot.md, fewshot.json and fewshot.png.

For each arm and k: mean, standard deviation (n - 1), minimum, maximum, median and interquartile
range over the seeds, and the differences to the baseline arm at the same k, seed by seed. The
model before any training stands beside it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ds_train.compare.arms import Comparison
from ds_train.compare.children import Outcome
from ds_train.compare.kshot import Ladder, base_command
from ds_train.compare.results import RunResult, find_value
from ds_train.compare.summary import ArmMetric, best_rates, compare_metric, lower_is_better
from ds_train.compare.table import failed_lines, format_spread
from ds_train.errors import RunFailed
from ds_train.paths import replace_text
from ds_train.report.markdown import as_table
from ds_train.report.plot import plot_ladder

Say = Callable[[str], object]

ZERO_SHOT = "zero_shot.json"


@dataclass(frozen=True)
class Rung:
    """One arm at one k."""

    arm: str
    k: int
    rate: float | None
    """Learning rate of the sweep that was taken; None without one."""
    metrics: list[ArmMetric]
    """In the order of compare.metrics; differences are those to the baseline at this k."""

    def distribution(self, place: int) -> dict[str, float]:
        """Over the seeds: mean, sd, min, max, median, iqr (75th less 25th percentile)."""
        values = np.array(list(self.metrics[place].values.values()))
        quartiles = np.percentile(values, [25, 50, 75])
        return {
            "mean": float(values.mean()),
            "sd": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            "min": float(values.min()),
            "max": float(values.max()),
            "median": float(quartiles[1]),
            "iqr": float(quartiles[2] - quartiles[0]),
        }


def write_fewshot_report(
    ladder: Ladder,
    comparison: Comparison,
    results: Sequence[RunResult],
    failed: Sequence[Outcome],
    say: Say,
) -> None:
    """The table, its numbers and its picture, with the model before training beside them."""
    folder, metrics = comparison.folder, comparison.compare.metrics
    rungs = climb(ladder, comparison, results)
    before = measure_before(comparison, results, say)
    text = markdown(rungs, metrics, ladder, before, failed)
    replace_text(folder / "fewshot.md", text)
    numbers = {
        "baseline": ladder.baseline,
        "before": before,
        "rungs": [
            {**asdict(rung), "distribution": [rung.distribution(i) for i in range(len(metrics))]}
            for rung in rungs
        ],
        "runs": [asdict(run) for run in results],
        "failed": [{"run": one.spec.name, "reason": one.fault} for one in failed],
    }
    replace_text(folder / "fewshot.json", json.dumps(numbers, indent=1) + "\n")
    say(f"\n{text}")
    values = {
        arm: {one.k: list(one.metrics[0].values.values()) for one in rungs if one.arm == arm}
        for arm in ladder.arms
    }
    plot_ladder(
        folder / "fewshot.png",
        values,
        metric=metrics[0],
        rungs="examples per class",
        before=before.get(metrics[0]),
        say=say,
    )


def climb(ladder: Ladder, comparison: Comparison, results: Sequence[RunResult]) -> list[Rung]:
    """Every arm and k that has a finished run, k by k, each at its best learning rate."""
    rates = best_rates(results, comparison.compare)
    rungs = []
    for k in ladder.shots:
        runs = {
            arm: [
                run
                for run in results
                if (run.arm, run.rate) == (ladder.rung(arm, k), rates.get(ladder.rung(arm, k)))
            ]
            for arm in ladder.arms
        }
        baseline = {run.seed: run for run in runs[ladder.baseline]}
        for arm, own in runs.items():
            if not own:
                continue
            others = {} if arm == ladder.baseline else baseline
            found = [compare_metric(arm, one, own, others) for one in comparison.compare.metrics]
            rungs.append(Rung(arm, k, own[0].rate, found))
    return rungs


def measure_before(
    comparison: Comparison, results: Sequence[RunResult], say: Say
) -> dict[str, float]:
    """Each metric of the model before training, on the same data; {} where it has no weights."""
    spec = next(one for one in comparison.runs if one.name == results[0].name)
    if spec.config.model.init != "pretrained":
        return {}
    path = comparison.folder / ZERO_SHOT
    if not path.is_file():
        say("fewshot: the model before training is measured")
        command = base_command(spec.paths.root, path)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            say(f"fewshot: that failed: {done.stderr.strip().splitlines()[-1:]}")
            return {}
    numbers = json.loads(path.read_text())
    found: dict[str, float] = {}
    for metric in comparison.compare.metrics:
        try:
            found[metric] = find_value(numbers, metric)
        except RunFailed:
            continue
    return found


def markdown(
    rungs: Sequence[Rung],
    metrics: Sequence[str],
    ladder: Ladder,
    before: dict[str, float],
    failed: Sequence[Outcome],
) -> str:
    """One table for each metric."""
    parts: list[str] = []
    for place, metric in enumerate(metrics):
        better = "lower is better" if lower_is_better(metric) else "higher is better"
        parts += [f"**{metric}** ({better})", ""]
        if metric in before:
            parts += [f"Before training: {before[metric]:.4f}", ""]
        parts += [*_table(rungs, place, ladder), ""]
    parts.append(
        "k is the number of examples per class; each seed draws its own, the smaller sets within "
        "the larger. Differences are taken within each seed. No difference: the mean is smaller "
        "than its standard deviation over seeds."
    )
    return "\n".join([*parts, *failed_lines(failed)]).rstrip() + "\n"


def _table(rungs: Sequence[Rung], place: int, ladder: Ladder) -> list[str]:
    sweep = any(rung.rate is not None for rung in rungs)
    head = ["k", "arm", *(["learning rate"] if sweep else []), "seeds", "mean (sd)"]
    head += ["min", "median", "max", "IQR", f"difference to {ladder.baseline}, mean (sd)"]
    head += ["seeds better", "verdict"]
    return as_table(head, [_row(rung, place, sweep) for rung in rungs])


def _row(rung: Rung, place: int, sweep: bool) -> list[str]:
    metric, over = rung.metrics[place], rung.distribution(place)
    cells: list[Any] = [f"{rung.k:,}", rung.arm, *([f"{rung.rate:g}"] if sweep else [])]
    cells += [len(metric.values), format_spread(metric.spread)]
    cells += [f"{over[name]:.4f}" for name in ("min", "median", "max", "iqr")]
    if metric.difference is None:
        return [*map(str, cells), "", "", "baseline"]
    cells += [format_spread(metric.difference, sign="+")]
    cells += [f"{metric.num_better} of {metric.difference.num}", metric.verdict]
    return [str(cell) for cell in cells]
