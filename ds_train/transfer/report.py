"""What a transfer measurement leaves behind: transfer.md, transfer.json and transfer.png."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

from ds_train.compare.arms import Comparison, RunSpec, run_name
from ds_train.compare.children import Outcome
from ds_train.compare.results import RunResult
from ds_train.compare.run import run_comparison
from ds_train.compare.summary import best_rates, spread
from ds_train.compare.summary import summarise as summarise_arms
from ds_train.compare.table import failed_lines, format_spread, rate_lines
from ds_train.paths import replace_text
from ds_train.report.markdown import as_table
from ds_train.report.plot import plot_ladder
from ds_train.transfer.before_after import Measuring
from ds_train.transfer.design import METRIC, Cell, Design
from ds_train.transfer.effective import Fit
from ds_train.transfer.summary import CellSummary, fits, summarise

Say = Callable[[str], object]


def transfer_command(comparison: Comparison, design: Design, say: Say = print) -> int:
    """Every run of what `plan_transfer` made, measured; returns the exit code.

    Raises InputError for whatever can be found before the first run, with every fault.
    """

    def report(
        done: Comparison, results: Sequence[RunResult], failed: Sequence[Outcome], tell: Say
    ) -> None:
        write_transfer_report(design, done, results, failed, tell)

    tried = design.transfer.rate_seeds
    if tried is None or comparison.compare.learning_rates is None:
        return run_comparison(comparison, say, report)
    tuning = [run for run in comparison.runs if run.seed in comparison.compare.seeds[:tried]]
    found: list[RunResult] = []
    code = run_comparison(
        replace(comparison, runs=tuning), say, lambda _, results, *rest: found.extend(results)
    )
    if not found:
        return code  # it was asked to stop
    rates = best_rates(found, comparison.compare)
    others = [run for run in comparison.runs if run not in tuning and run.rate == rates[run.arm]]
    return run_comparison(replace(comparison, runs=[*tuning, *others]), say, report)


def write_transfer_report(
    design: Design,
    comparison: Comparison,
    results: Sequence[RunResult],
    failed: Sequence[Outcome],
    say: Say,
) -> None:
    """The table, its numbers and its picture."""
    folder, compare = comparison.folder, comparison.compare
    specs = {spec.name: spec for spec in comparison.runs}
    measuring = Measuring(comparison, design, say)

    def spec_of(run: RunResult) -> RunSpec:
        return specs[run_name(run.arm, run.seed, run.rate)]

    pretrained = [spec_of(run) for run in results]
    pretrained = [spec for spec in pretrained if spec.config.model.init == "pretrained"]
    before: dict[str, float] = {}
    if pretrained:
        before["target"] = measuring.zero_shot(pretrained[0])
    source_of = None
    if design.transfer.source:
        if pretrained:
            before["source"] = measuring.source_before(pretrained[0])
        source_of = lambda run: measuring.source_after(spec_of(run))  # noqa: E731
    cells = summarise(design, compare, results, source_of)
    arms = summarise_arms(results, compare, best_rates(results, compare))
    lines = [*table(cells, before), "", *notes(cells, design, before), ""]
    if compare.learning_rates is not None:
        lines += [*rate_lines(arms, compare, results), ""]
    text = "\n".join([*lines, *failed_lines(failed)]).rstrip() + "\n"
    replace_text(folder / "transfer.md", text)
    replace_text(folder / "transfer.json", json.dumps(_as_json(cells, before), indent=1) + "\n")
    say(f"\n{text}")
    _draw(folder / "transfer.png", cells, before, say)


def table(cells: Sequence[CellSummary], before: dict[str, float]) -> list[str]:
    """One line for each size and arm."""
    head = ["target data", "arm", "learning rate", "seeds", "bits per byte, mean (sd)"]
    head += ["less random's, mean (sd)", "tokens to the target, mean", "random's tokens over these"]
    with_source = any(one.source for one in cells)
    head += ["source text, mean (sd)"] if with_source else []
    head += ["random needs", "transferred"]
    rows = []
    for one in cells:
        row = [_amount(one.cell, one.cell.amount), one.cell.arm]
        row += ["" if one.rate is None else f"{one.rate:g}", str(len(one.runs))]
        row.append(format_spread(one.spread))
        differences = list(one.against_random.values())
        row.append(format_spread(spread(differences), sign="+") if differences else "")
        row += _times(one)
        if with_source:
            row.append(format_spread(spread(list(one.source.values()))) if one.source else "")
        rows.append(row + _equivalent(one))
    return as_table(head, rows)


def _times(one: CellSummary) -> list[str]:
    """Tokens to the target, and how many times as many random weights take to their best."""
    tokens = [count for count in one.reached.values() if count is not None]
    if not one.reached or not tokens:
        return ["not reached" if one.reached else "", ""]
    text = f"{fmean(tokens):,.0f}"
    if len(tokens) < len(one.reached):
        text += f" ({len(tokens)} of {len(one.reached)} seeds)"
    seeds = [seed for seed, count in one.reached.items() if count and seed in one.random_tokens]
    if not seeds:
        return [text, ""]
    mine = fmean([float(one.reached[seed] or 0) for seed in seeds])
    return [text, f"{fmean([one.random_tokens[seed] for seed in seeds]) / mine:.2g}"]


def _equivalent(one: CellSummary) -> list[str]:
    if one.equivalent is None or one.cell.amount is None:
        return ["", ""]
    sign = {"more": "> ", "less": "< ", "": ""}[one.equivalent.bound]
    transferred = one.equivalent.transferred(one.cell.amount)
    return [
        sign + _amount(one.cell, round(one.equivalent.amount)),
        sign + _amount(one.cell, round(transferred)),
    ]


def _amount(cell: Cell, amount: int | None) -> str:
    if amount is None:
        return "all"
    if cell.unit == "samples":
        return f"{amount:,}"
    return f"{amount / 1e6:,.1f} MB" if abs(amount) >= 1e6 else f"{amount / 1e3:,.1f} kB"


def notes(cells: Sequence[CellSummary], design: Design, before: dict[str, float]) -> list[str]:
    """What has to be said beside the table."""
    lines = []
    if "target" in before:
        lines.append(f"Before training (zero-shot): {before['target']:.4f} bits per byte.")
    if "source" in before:
        lines.append(f"Source text before training: {before['source']:.4f} bits per byte.")
    reach = design.transfer.reach
    target = "where random weights end at the same size" if reach is None else f"{reach:g}"
    lines.append(
        "Bits per byte on test text; learning rates and the best checkpoint of each run are chosen "
        f"on dev text. The target that tokens are counted to is {target}, on dev text. What random "
        "weights need is read off their line over log data; > and < say that it lies beyond the "
        "sizes measured."
    )
    tried = design.transfer.rate_seeds
    if tried is not None and tried < len(design.transfer.seeds):
        many = "the first seed" if tried == 1 else f"the first {tried} seeds"
        lines.append(
            f"Learning rates were tried on {many}; the others trained at the best one of these."
        )
    for arm, fit in fits(cells).items():
        lines.append(f"Effective data transferred, {arm}: {_fit(fit)}")
    if len(design.transfer.seeds) < 2:
        lines.append("One seed: there is no spread, and nothing can be concluded from it.")
    return lines


def _fit(fit: Fit | None) -> str:
    if fit is None:
        return "no fit, as fewer than three sizes have a value between the sizes measured."
    return (
        f"D_T = {fit.k:.3g} D_F^{fit.alpha:.3g} over {fit.num_points} sizes (root mean square "
        f"residual of ln D_T {fit.residual:.2g})."
    )


def _as_json(cells: Sequence[CellSummary], before: dict[str, float]) -> dict[str, object]:
    return {
        "before": before,
        "cells": [{**asdict(one), "values": one.values} for one in cells],
        "fits": {arm: None if fit is None else asdict(fit) for arm, fit in fits(cells).items()},
    }


def _draw(path: Path, cells: Sequence[CellSummary], before: dict[str, float], say: Say) -> None:
    """Bits per byte over the amount of target data, an arm a line."""
    values: dict[str, dict[int, list[float]]] = {}
    for one in cells:
        if one.cell.amount is not None:
            of_arm = values.setdefault(one.cell.arm, {})
            of_arm[one.cell.amount] = list(one.values.values())
    if not values:
        return
    unit = "documents" if cells[0].cell.unit == "samples" else "bytes"
    what = f"target data ({unit})"
    zero = before.get("target")
    plot_ladder(path, values, metric=METRIC, rungs=what, before=zero, say=say)
