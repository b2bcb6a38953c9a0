"""The numbers of a transfer measurement: each arm at each size, against random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ds_train.compare.results import RunResult
from ds_train.compare.summary import Spread, best_rates, first_reaching, spread
from ds_train.config.compare import CompareConfig
from ds_train.config.transfer import RANDOM
from ds_train.transfer.design import METRIC, Cell, Design
from ds_train.transfer.effective import Equivalent, Fit, equivalent_data, fit_power


@dataclass(frozen=True)
class CellSummary:
    """One arm at one size, at the learning rate that was best on dev."""

    cell: Cell
    rate: float | None
    runs: list[RunResult]
    """One of each seed."""
    reached: dict[int, int | None]
    """Seed -> tokens after which dev is as good as the target; None where it never is."""
    random_tokens: dict[int, int]
    """Seed -> tokens after which random weights, at this size, are at their best on dev."""
    against_random: dict[int, float]
    """Seed -> value less that of random weights at this size; empty for these."""
    equivalent: Equivalent | None = None
    """Data from which random weights reach the mean over the seeds; None without such an arm."""
    source: dict[int, float] = field(default_factory=dict)
    """Seed -> bits per byte on the source text afterwards; empty where it was not measured."""

    @property
    def values(self) -> dict[int, float]:
        """Seed -> bits per byte on the test text."""
        return {run.seed: run.values[METRIC] for run in self.runs}

    @property
    def spread(self) -> Spread:
        """Of these."""
        return spread(list(self.values.values()))


def summarise(
    design: Design,
    compare: CompareConfig,
    results: Sequence[RunResult],
    source_of: Callable[[RunResult], float] | None,
) -> list[CellSummary]:
    """Every arm and size that has a finished run.

    `source_of`: measures a run on the source text; None where there is no such text.
    """
    rates = best_rates(results, compare)
    runs = {
        cell: [r for r in results if (r.arm, r.rate) == (cell.name, rates.get(cell.name))]
        for cell in design.cells
    }
    random = {
        cell.amount: {run.seed: run for run in own}
        for cell, own in runs.items()
        if cell.arm == RANDOM and own
    }
    ladder = {
        float(amount): spread([run.values[METRIC] for run in of_seed.values()]).mean
        for amount, of_seed in random.items()
        if amount is not None
    }
    found = []
    for cell, own in runs.items():
        if own:
            baseline = random.get(cell.amount, {})
            one = _cell(cell, own, baseline, ladder, design.transfer.reach)
            if source_of is not None:
                one.source.update({run.seed: source_of(run) for run in own})
            found.append(one)
    return found


def _cell(
    cell: Cell,
    runs: list[RunResult],
    baseline: Mapping[int, RunResult],
    ladder: Mapping[float, float],
    reach: float | None,
) -> CellSummary:
    reached = {}
    for run in runs:
        target = reach
        if target is None and run.seed in baseline:
            target = baseline[run.seed].selected_by(METRIC)
        if target is not None:
            reached[run.seed] = first_reaching(run.curve, target, lower=True)
    others = {} if cell.arm == RANDOM else baseline
    against = {
        run.seed: run.values[METRIC] - others[run.seed].values[METRIC]
        for run in runs
        if run.seed in others
    }
    equivalent = None
    if ladder and cell.arm != RANDOM and cell.amount is not None:
        equivalent = equivalent_data(spread([run.values[METRIC] for run in runs]).mean, ladder)
    tokens = {seed: run.tokens for seed, run in baseline.items()}
    return CellSummary(cell, runs[0].rate, runs, reached, tokens, against, equivalent)


def fits(cells: Sequence[CellSummary]) -> dict[str, Fit | None]:
    """Arm -> fit of effective data transferred over its sizes, bounds left out."""
    points: dict[str, dict[float, float]] = {}
    for one in cells:
        if one.equivalent is None or one.cell.amount is None:
            continue
        of_arm = points.setdefault(one.cell.arm, {})
        if not one.equivalent.bound:
            amount = float(one.cell.amount)
            of_arm[amount] = one.equivalent.transferred(amount)
    return {arm: fit_power(found) for arm, found in points.items()}
