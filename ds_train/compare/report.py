"""What a finished comparison leaves behind: compare.md, compare.json and compare.png."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ds_train.compare.arms import Comparison
from ds_train.compare.children import Outcome
from ds_train.compare.results import RunResult
from ds_train.compare.summary import ArmSummary, best_rates, summarise
from ds_train.compare.table import as_json, markdown
from ds_train.config.compare import CompareConfig
from ds_train.paths import replace_text
from ds_train.report.plot import Curve, plot_compare

Say = Callable[[str], object]
Report = Callable[[Comparison, Sequence[RunResult], Sequence[Outcome], Say], None]
"""Writes what a comparison came to: its finished runs, in order, and those that failed."""


def write_report(
    comparison: Comparison, results: Sequence[RunResult], failed: Sequence[Outcome], say: Say
) -> None:
    """The table, its numbers and its picture."""
    compare, folder = comparison.compare, comparison.folder
    arms = summarise(results, compare, best_rates(results, compare))
    text = markdown(arms, compare, results, failed)
    replace_text(folder / "compare.md", text)
    numbers = as_json(arms, compare, results, failed)
    replace_text(folder / "compare.json", json.dumps(numbers, indent=1) + "\n")
    say(f"\n{text}")
    draw(folder / "compare.png", arms, compare, say)


def draw(path: Path, arms: Sequence[ArmSummary], compare: CompareConfig, say: Say) -> None:
    """The picture: primary metric over tokens of each arm, and each seed's final value."""
    primary = compare.metrics[0]
    curves = {
        arm.arm: [
            Curve([p.tokens for p in run.curve], [p.value for p in run.curve])
            for run in arm.runs
            if len(run.curve) > 1
        ]
        for arm in arms
    }
    finals = {arm.arm: {run.seed: run.values[primary] for run in arm.runs} for arm in arms}
    plot_compare(path, curves, finals, metric=primary, say=say)
