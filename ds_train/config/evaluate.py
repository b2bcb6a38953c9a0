"""The `evaluate` section: what is measured during a run, and when."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from ds_train.config.base import Count, Natural, Section, Span, UserPath


def _each_once(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError(f"{values} names a number twice; name each once")
    return values


Distinct = Annotated[list[Natural], AfterValidator(_each_once)]
"""Whole numbers of at least 0, each once."""


class EvaluateConfig(Section):
    """Evaluation during the run: on data.validation, and by tasks of lm_eval."""

    every: Span | None = None
    """How often; only at the end when left out."""

    at_start: bool = False
    """Also before the first step."""

    max_rows: Count | None = None
    """Evaluate on the first so many rows only."""

    rank_classification: bool = False
    """Score the candidate answers of data.validation: the share of examples where the right one is
    the most likely."""

    tasks: list[str] = []
    """Evaluation tasks of lm_eval: names of tasks, groups or tags, patterns, YAML files."""

    task_path: UserPath | None = None
    """A folder of your own task YAML files."""

    shots: Distinct = []
    """Numbers of demonstrations; each task's own when left out."""

    seeds: Annotated[Distinct, Field(min_length=1)] = [1234]
    """Of the demonstrations."""

    tasks_every: Span | None = None
    """How often the tasks are evaluated; only at the end when left out."""
