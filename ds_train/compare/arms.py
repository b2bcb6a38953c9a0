"""From a recipe to the runs of a comparison: arm x seed (x learning rate), each a whole recipe.

    OUTPUT_DIR/easy_to_hard/seed-0              or, with a sweep, .../seed-0/lr-0.001

The arm's settings are laid over the recipe as those of the command line are, then folder, seed and
rate are set. Weights are drawn from train.seed, so all arms of a seed start alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ds_train.config.compare import EQUAL_UPDATES, CompareConfig
from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError
from ds_train.paths import RunPaths
from ds_train.plan.validate import Plan, validate


@dataclass(frozen=True)
class RunSpec:
    """One run of a comparison."""

    arm: str
    seed: int
    rate: float | None
    """Learning rate of the sweep; None without one."""
    config: RunConfig
    reference: Path | None = None
    """Folder of the run whose number of optimizer steps this one takes."""

    @property
    def name(self) -> str:
        """Its folder below the comparison's: `easy_to_hard/seed-0`."""
        return run_name(self.arm, self.seed, self.rate)

    @property
    def has_dev(self) -> bool:
        """Whether choices are made on data that is not reported on."""
        fewshot = self.config.fewshot
        subset = None if fewshot is None else fewshot.subset
        return self.config.data.dev is not None or (subset is not None and subset.dev)

    @property
    def paths(self) -> RunPaths:
        """The files of its run folder."""
        return RunPaths(Path(self.config.output_dir))

    def resolved(self) -> RunConfig | None:
        """Its recipe; None as long as the run whose length it takes has not begun."""
        if self.reference is None:
            return self.config
        try:
            facts = json.loads(RunPaths(self.reference).run_facts.read_text())
            length = {"max_steps": int(facts["total_steps"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        no_other: dict[str, Any] = {"max_tokens": None, "num_train_epochs": None}
        return self.config.model_copy(
            update={"train": self.config.train.model_copy(update=no_other | length)}
        )


@dataclass(frozen=True)
class Comparison:
    """A recipe with its arms checked, and the runs that follow."""

    folder: Path
    compare: CompareConfig
    plans: dict[str, Plan]
    """Arm -> its recipe (that of the first seed), world and batch."""
    runs: list[RunSpec]
    """Seed after seed, so that an early look finds all arms of the first seeds."""


def run_name(arm: str, seed: int, rate: float | None = None) -> str:
    """Folder of a run below the comparison's."""
    return f"{arm}/seed-{seed}" + (f"/lr-{rate:g}" if rate is not None else "")


def plan_comparison(recipe: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """Read and check a recipe with all its arms; without torch, and nothing is written.

    Raises:
        ConfigError: with every fault of every arm.
    """
    base = load_recipe(recipe, overrides)
    compare = base.compare
    if compare is None:
        raise ConfigError(
            f"{recipe}: has no section compare, which names the arms, e.g. "
            "compare: {arms: {low: {adapter.r: 4}, high: {adapter.r: 64}}}."
        )
    plans: dict[str, Plan] = {}
    faults: dict[str, list[str]] = {}
    for arm, changes in compare.arms.items():
        try:
            plans[arm] = validate(recipe, [*overrides, *arm_overrides(changes)])
        except ConfigError as error:
            for fault in error.faults:
                faults.setdefault(fault, []).append(arm)
    if faults:
        raise ConfigError(tell_faults(faults, compare))
    folder = Path(base.output_dir)
    specs = partial(_spec, folder, compare, plans)
    grids: dict[str, Sequence[float | None]] = {
        arm: compare.rates_of(arm) or [None] for arm in plans
    }
    runs = [
        specs(arm, seed, rate) for seed in compare.seeds for arm in plans for rate in grids[arm]
    ]
    return Comparison(folder, compare, plans, runs)


def arm_overrides(changes: dict[str, Any]) -> list[str]:
    """The arm's settings as `section.key=value`; JSON is YAML on one line."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items() if key != EQUAL_UPDATES]


def tell_faults(faults: dict[str, list[str]], compare: CompareConfig) -> list[str]:
    """Faults with the arms that have them; what all arms share is a fault of the recipe."""
    told = []
    for fault, arms in faults.items():
        # the recipe was read without a fault, so the place is the arm, not the command line
        plain = fault.replace(" (on the command line)", "")
        shared = len(arms) == len(compare.arms) and len(arms) > 1
        told.append(plain if shared else f"compare.arms.{', '.join(arms)}: {plain}")
    return told


def _spec(
    folder: Path,
    compare: CompareConfig,
    plans: dict[str, Plan],
    arm: str,
    seed: int,
    rate: float | None,
) -> RunSpec:
    config = plans[arm].config
    train: dict[str, Any] = {"seed": seed}
    if rate is not None:
        train["learning_rate"] = rate
    report = config.report
    if report.run_name is None:  # of the folder alone, all arms would have the same names
        report = report.model_copy(update={"run_name": run_name(arm, seed, rate).replace("/", "-")})
    config = config.model_copy(
        update={
            "output_dir": str(folder / run_name(arm, seed, rate)),
            "train": config.train.model_copy(update=train),
            "report": report,
            "compare": None,
        }
    )
    other = compare.arms[arm].get(EQUAL_UPDATES)
    reference = folder / run_name(other, seed, rate) if other is not None else None
    return RunSpec(arm, seed, rate, config, reference)
