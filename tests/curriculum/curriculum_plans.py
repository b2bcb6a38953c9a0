"""Plans over small stores in memory, for tests of the curriculum's core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from small_store import store_of_lengths

from ds_train.config.run import RunConfig
from ds_train.curriculum.plan import build_step_plan
from ds_train.curriculum.scores import DifficultyScores
from ds_train.data.divide import PreparedData
from ds_train.data.order import StepPlan


def config_of(
    curriculum: dict[str, Any] | None = None,
    *,
    train: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    num_sources: int = 1,
) -> RunConfig:
    """A recipe with sources s0, s1, ..., unpacked rows of up to 16 tokens, 50 steps."""
    sources = [{"path": f"{i}.jsonl", "name": f"s{i}"} for i in range(num_sources)]
    recipe: dict[str, Any] = {
        "output_dir": "run",
        "model": {"name_or_path": "model"},
        "data": {"train": sources, "max_length": 16, "packing": False, **(data or {})},
        "train": train or {"max_steps": 50},
    }
    if curriculum is not None:
        recipe["curriculum"] = curriculum
    return RunConfig.model_validate(recipe)


def prepared_of(lengths: Sequence[int], sources: Sequence[int] | None = None) -> PreparedData:
    """Prepared data over `store_of_lengths`, sources named s0, s1, ..."""
    store = store_of_lengths(lengths, sources)
    num_sources = 1 + max(sources, default=0) if sources is not None else 1
    names = tuple(f"s{i}" for i in range(num_sources))
    return PreparedData(store, None, {}, "data", names, (1.0,) * num_sources)


def scores_of(values: Sequence[float] | np.ndarray) -> DifficultyScores:
    """Difficulties as they are."""
    return DifficultyScores(np.asarray(values, np.float32), "scores", "length")


def plan_of(
    config: RunConfig,
    lengths: Sequence[int],
    batch: int = 8,
    *,
    sources: Sequence[int] | None = None,
    values: Sequence[float] | np.ndarray | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> StepPlan:
    """The plan of a run; a sample's difficulty is its length when `values` is left out."""
    scores = scores_of(lengths if values is None else values)
    return build_step_plan(config, prepared_of(lengths, sources), scores, batch, say)


def order_of(plan: StepPlan, num_steps: int) -> list[list[list[int]]]:
    """Sample ids of each row of each step."""
    return [[row.tolist() for row in plan.rows(step)] for step in range(num_steps)]


def hardest(plan: StepPlan, values: Sequence[float] | np.ndarray, num_steps: int) -> list[float]:
    """The hardest sample of each step."""
    return [float(np.asarray(values)[plan.sample_ids(step)].max()) for step in range(num_steps)]
