"""The `evaluate` section: what is measured during a run, and when."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from ds_train.config.base import Count, Natural, Section, Span, UserPath
from ds_train.config.shots import CalibrationNames, DemonstrationsText, Draw, NormalisationNames


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

    demonstrations: DemonstrationsText | None = None
    """Which documents are shown before a task's questions: random, balanced, bm25, knn, fixed or
    fixed:3,17,42; each task's own way when left out."""

    draw: Draw = "document"
    """Demonstrations depend on seed and document only, or are drawn as lm_eval does."""

    calibration: CalibrationNames = ["none"]
    """Also accuracies without the model's bias towards an answer: contextual, batch, pmi."""

    normalise: NormalisationNames = ["none"]
    """What an answer's log-probability is divided by: tokens, chars, bytes; or pmi."""

    @model_validator(mode="after")
    def _one_way_to_draw(self) -> EvaluateConfig:
        if self.draw == "lm_eval" and self.demonstrations is not None:
            raise ValueError(
                f"demonstrations {self.demonstrations} can't be chosen with draw lm_eval, which "
                "leaves the choice to the harness; leave one of the two out"
            )
        return self
