"""`ds-train fewshot`: the arms of a recipe at several numbers of examples per class.

    ds-train fewshot recipe.yaml --k 4,16,64 --seeds 5

Every arm of the recipe's compare section (or the recipe itself) is crossed with every k and seed;
each seed draws examples of its own, and the smaller sets lie within the larger. Few-shot results
vary with the draw, so the whole distribution over seeds is reported, not its mean alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ds_train.compare.arms import Comparison, plan_comparison
from ds_train.config.compare import EQUAL_UPDATES
from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError

Say = Callable[[str], object]

SHOTS = "fewshot.subset.k"
DEFAULT_SHOTS = (4, 16, 64)


@dataclass(frozen=True)
class Ladder:
    """The rungs of a few-shot comparison, and which arm of it is which."""

    arms: list[str]
    """In the recipe's order; the baseline is one of them."""
    baseline: str
    shots: list[int]
    """Examples per class, ascending."""

    def rung(self, arm: str, k: int) -> str:
        """Name of an arm at k examples in the comparison, and of its folder."""
        return f"{arm}-k{k}"


def plan_fewshot(
    recipe: str | Path,
    overrides: Sequence[str],
    *,
    shots: Sequence[int],
    seeds: Sequence[int] | None,
) -> tuple[Comparison, Ladder]:
    """A comparison of every arm at every k; without torch, and nothing is written.

    `seeds` are those of the recipe's compare section when left out.

    Raises:
        ConfigError: with every fault of every arm.
    """
    base = load_recipe(recipe, overrides)
    arms = {base.adapter.method: {}} if base.compare is None else base.compare.arms
    baseline = next(iter(arms)) if base.compare is None else base.compare.baseline_arm
    ladder = Ladder(list(arms), baseline, sorted(set(shots)))
    _check_arms(base, arms)
    settings: dict[str, Any] = {"metrics": _default_metrics(base)}
    if base.compare is not None:
        settings = base.compare.model_dump(mode="json", exclude_none=True)
    settings["arms"] = {
        ladder.rung(arm, k): _at(ladder, changes, k)
        for k in ladder.shots
        for arm, changes in arms.items()
    }
    settings["baseline"] = ladder.rung(baseline, ladder.shots[0])
    if seeds is not None:
        settings["seeds"] = list(seeds)
    return plan_comparison(recipe, [*overrides, f"compare={json.dumps(settings)}"]), ladder


def _at(ladder: Ladder, changes: dict[str, Any], k: int) -> dict[str, Any]:
    """An arm's settings at k examples; the arm that it refers to is that of the same k."""
    changes = {**changes, SHOTS: k}
    if EQUAL_UPDATES in changes:
        changes[EQUAL_UPDATES] = ladder.rung(changes[EQUAL_UPDATES], k)
    return changes


def _check_arms(base: RunConfig, arms: dict[str, dict[str, Any]]) -> None:
    for arm, changes in arms.items():
        for key in changes:
            if key == SHOTS or SHOTS.startswith(f"{key}."):
                raise ConfigError(
                    f"compare.arms.{arm} sets {key}; ds-train fewshot crosses every arm with the "
                    "numbers of --k, so leave it out (or run ds-train compare)."
                )
    subset = base.fewshot.subset if base.fewshot is not None else None
    if subset is not None and subset.seed is not None:
        raise ConfigError(
            f"fewshot.subset.seed = {subset.seed}: every run would train on the same examples, and "
            "the spread over seeds would not show what the draw does; leave it out."
        )


def _default_metrics(base: RunConfig) -> list[str]:
    return ["rank_accuracy" if base.evaluate.rank_classification else "exact_match"]


def parse_shots(text: str) -> list[int]:
    """`4,16,64` as numbers; raises ConfigError with the rule."""
    return _numbers("--k", text, least=1, example="4,16,64")


def parse_seeds(text: str) -> list[int]:
    """`5` is five seeds, 0 to 4; `13,21,42` are these. Raises ConfigError with the rule."""
    if "," in text:
        return _numbers("--seeds", text, least=0, example="13,21,42")
    return list(range(_numbers("--seeds", text, least=1, example="5")[0]))


def _numbers(option: str, text: str, *, least: int, example: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least or len(set(numbers)) < len(numbers):
        raise ConfigError(
            f"{option} {text}: must be different whole numbers from {least}, e.g. {example}"
        )
    return numbers


def fewshot_command(
    recipe: str | Path,
    overrides: Sequence[str],
    *,
    shots: Sequence[int],
    seeds: Sequence[int] | None,
    say: Say = print,
) -> int:
    """Train and measure all of it, then write fewshot.md, .json and .png; returns the exit code."""
    comparison, ladder = plan_fewshot(recipe, overrides, shots=shots, seeds=seeds)
    # torch comes with these, and the recipe's faults were to be told first
    from ds_train.compare.kshot_report import write_fewshot_report
    from ds_train.compare.run import run_comparison

    return run_comparison(comparison, say, partial(write_fewshot_report, ladder))


def base_command(run: Path, output: Path) -> list[str]:
    """`ds-train evaluate` of a run's base model, before any training."""
    command = [sys.executable, "-m", "ds_train", "evaluate", str(run), "--base"]
    return [*command, "--output", str(output)]
