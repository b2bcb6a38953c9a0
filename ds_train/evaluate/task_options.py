"""What is asked of lm_eval's tasks beyond their YAML files: demonstrations and scores.

`equip` is called once for each loaded task; from then on the task draws, normalises and calibrates
as asked, and `Equipped.remarks` tells what has to be said beside its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_train.config.shots import (
    CALIBRATIONS,
    DRAWS,
    NORMALISATIONS,
    Demonstrations,
    check_name,
    parse_demonstrations,
    parse_names,
)
from ds_train.errors import ConfigError
from ds_train.evaluate.task_scores import TaskScores
from ds_train.evaluate.task_shots import TaskShots
from ds_train.fewshot.calibration import BATCH_REMARK
from ds_train.fewshot.demonstrations import Vectors

Say = Callable[[str], Any]
Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts -> vectors [num_texts, d]."""


@dataclass(frozen=True)
class TaskOptions:
    """Demonstrations and scores of all tasks of an evaluation."""

    demonstrations: str | None = None
    """a name of ds_train/config/shots.py; each task's own sampler when left out"""
    draw: str = "document"
    """`document`: from a hash of seed and document; `lm_eval`: as the harness does"""
    calibration: tuple[str, ...] = ("none",)
    normalise: tuple[str, ...] = ("none",)

    def __post_init__(self) -> None:
        if self.draw == "lm_eval" and self.demonstrations is not None:
            raise ConfigError(
                f"demonstrations = {self.demonstrations}: draw = lm_eval leaves the choice to the "
                "harness, as the task's YAML says; leave one of the two out."
            )

    @classmethod
    def parse(
        cls,
        demonstrations: str | None = None,
        draw: str | None = None,
        calibration: str | Sequence[str] | None = None,
        normalise: str | Sequence[str] | None = None,
    ) -> TaskOptions:
        """From the options of the command line: names, or several with commas between them.

        Raises:
            ConfigError: every name that there is not, with the nearest.
        """
        faults: list[str] = []

        def read(field: str, value: Any, parse: Callable[[Any], Any], default: Any) -> Any:
            if value is None:
                return default
            try:
                return parse(value)
            except ValueError as error:
                faults.append(f"--{field} {value}: {error}")
                return default

        shown = read("demonstrations", demonstrations, parse_demonstrations, None)
        drawn = read("draw", draw, lambda one: check_name(one, DRAWS), "document")
        calibrated = read(
            "calibration", calibration, lambda one: parse_names(one, CALIBRATIONS), ["none"]
        )
        lengths = read(
            "normalise", normalise, lambda one: parse_names(one, NORMALISATIONS), ["none"]
        )
        if faults:
            raise ConfigError(faults)
        return cls(shown and str(shown), drawn, tuple(calibrated), tuple(lengths))

    def to_json(self) -> dict[str, Any]:
        """What stands in the JSON file."""
        return {
            "demonstrations": self.demonstrations,
            "draw": self.draw,
            "calibration": list(self.calibration),
            "normalise": list(self.normalise),
        }

    @property
    def adds_scores(self) -> bool:
        """Whether anything but the task's own metrics is asked for."""
        return (*self.normalise, *self.calibration) != ("none", "none")


@dataclass(frozen=True)
class Equipped:
    """What was put in place for one task."""

    name: str
    shots: TaskShots
    scores: TaskScores | None

    @property
    def is_drawn(self) -> bool:
        """Whether another seed shows other demonstrations."""
        how = self.shots.how
        return how is None or how.method in ("random", "balanced")

    def remarks(self) -> list[str]:
        """What has to be said about the evaluation that was made last."""
        found = self.shots.counts.describe(self.shots.reader.max_length)
        return [] if found is None else [f"task {self.name}: {found}"]


def equip(
    name: str,
    task: Any,
    options: TaskOptions,
    model: Any,
    *,
    embed: Embed,
    limit: int | None,
    say: Say,
) -> Equipped:
    """Make a loaded task draw and score as asked.

    Args:
        model: `TaskModel`, whose tokens are counted.
        embed: for `knn`; limit: the first so many documents are evaluated.

    Raises:
        InputError: a calibration that the task can't have.
    """

    def vectors(shots: TaskShots) -> tuple[Vectors, Mapping[str, Vectors]]:
        documents = task.doc_iterator(rank=0, limit=limit, world_size=1)
        queries = list(dict.fromkeys(shots.query(doc).input for _, doc in documents))
        pool = shots.pool().inputs
        found = embed([*pool, *queries])
        return found[: len(pool)], dict(zip(queries, found[len(pool) :], strict=True))

    shots = TaskShots(task, _how(name, task, options, say), model, vectors)
    scores = None
    if options.adds_scores:
        if task.OUTPUT_TYPE == "multiple_choice":
            scores = TaskScores(task, shots, model, options.normalise, options.calibration)
            if "batch" in scores.calibrations:
                say(f"task {name}: {BATCH_REMARK}")
        else:
            say(
                f"task {name}: normalise and calibration are left out, as they are for "
                f"multiple_choice tasks and this is a {task.OUTPUT_TYPE} task"
            )
    return Equipped(name, shots, scores)


def _how(name: str, task: Any, options: TaskOptions, say: Say) -> Demonstrations | None:
    """How the demonstrations are chosen; None leaves it to lm_eval."""
    if options.draw == "lm_eval":
        return None
    if options.demonstrations is not None:
        return parse_demonstrations(options.demonstrations)
    own = task.fewshot_cfg.sampler
    if own == "first_n":
        return Demonstrations("fixed")
    if own == "default":
        return Demonstrations("random")
    say(f"task {name}: its own sampler ({own!r}) draws the demonstrations, as with draw = lm_eval")
    return None
