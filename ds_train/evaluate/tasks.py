"""Tasks of lm_eval with our model: every task with every number of demonstrations and every seed.

lm_eval builds the contexts, applies filters and computes the metrics; what it asks of the model
goes through `TaskModel`. Its result keys stay as they are.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ds_train.errors import DataError
from ds_train.evaluate.embed import embed_texts
from ds_train.evaluate.task_list import check_pools, quieten
from ds_train.evaluate.task_model import TaskModel
from ds_train.evaluate.task_options import TaskOptions, equip
from ds_train.evaluate.task_templates import templates_compiled_once

Say = Callable[[str], Any]

BOOTSTRAP_SAMPLES = 1000
"""For the standard errors of metrics that have no formula, such as perplexity."""


@dataclass(frozen=True)
class TaskSettings:
    """What is evaluated, and how."""

    tasks: tuple[str, ...]
    task_path: str | None = None
    shots: tuple[int, ...] = ()
    """numbers of demonstrations; each task's own where empty"""
    seeds: tuple[int, ...] = (1234,)
    """of the demonstrations; lm_eval's default"""
    limit: int | None = None
    """only the first so many documents of each task"""
    options: TaskOptions = field(default_factory=TaskOptions)
    """how demonstrations are chosen, and which scores are given"""
    log_samples: bool = False
    """keep every document's requests, answers and metrics"""


@dataclass(frozen=True)
class TaskResult:
    """One task (or group) with one number of demonstrations and one seed."""

    task: str
    shots: int | None
    """None of a group whose tasks have different numbers"""
    seed: int
    results: dict[str, Any]
    """as lm_eval gives them: "acc,none", "acc_stderr,none", "alias", ..."""
    version: Any = None
    higher_is_better: dict[str, Any] = field(default_factory=dict)
    num_samples: dict[str, int] = field(default_factory=dict)
    """"original" and "effective", the documents that were used"""
    samples: list[dict[str, Any]] | None = None
    remarks: list[str] = field(default_factory=list)
    """what has to be said beside the numbers"""

    def numbers(self) -> dict[str, float]:
        """The metrics by their lm_eval names, standard errors left out."""
        return {k: v for k, v in self.all_numbers().items() if "_stderr," not in k}

    def all_numbers(self) -> dict[str, float]:
        """The metrics by their lm_eval names; what is no number is left out ("N/A")."""
        return {
            key: float(value)
            for key, value in self.results.items()
            if "," in key and isinstance(value, int | float)
        }

    def error_of(self, key: str) -> float | None:
        """Standard error of a metric, where lm_eval knows one."""
        metric, _, name = key.partition(",")
        value = self.results.get(f"{metric}_stderr,{name}")
        return float(value) if isinstance(value, int | float) else None

    def to_json(self) -> dict[str, Any]:
        """What stands in the JSON file."""
        found: dict[str, Any] = {
            "task": self.task,
            "shots": self.shots,
            "seed": self.seed,
            "results": self.results,
            "version": self.version,
            "higher_is_better": self.higher_is_better,
            "n-samples": self.num_samples,
            "remarks": self.remarks,
        }
        if self.samples is not None:
            found["samples"] = self.samples
        return found


class TaskRun:
    """Tasks that are ready to be evaluated with a model, as often as one likes.

    Args:
        loaded: of `open_tasks`; its tasks are changed.

    Raises:
        ConfigError: more demonstrations than a task has.
    """

    def __init__(
        self, loaded: dict[str, Any], settings: TaskSettings, model: TaskModel, say: Say
    ) -> None:
        quieten()
        for shots in settings.shots:
            check_pools(loaded, shots)
        self._loaded, self._settings, self._model, self._say = loaded, settings, model, say
        tasks = loaded["tasks"]
        self._own_shots = {name: task.get_config("num_fewshot") for name, task in tasks.items()}
        embed = partial(embed_texts, model.scorer, model.tokenizer)
        common: dict[str, Any] = {"embed": embed, "limit": settings.limit, "say": say}
        self._equipped = [
            equip(name, task, settings.options, model, **common) for name, task in tasks.items()
        ]

    def evaluate(self) -> list[TaskResult]:
        """Results of every task, number of demonstrations and seed; a collective call.

        Raises:
            DataError: a document can't be asked, or scored.
        """
        tasks, settings = self._loaded["tasks"], self._settings
        results: list[TaskResult] = []
        for shots in settings.shots or (None,):
            _set_shots(tasks, self._own_shots, shots, self._say)
            used = {task.get_config("num_fewshot") for task in tasks.values()}
            # where nothing is drawn, one seed says it all
            is_drawn = used != {0} and any(one.is_drawn for one in self._equipped)
            seeds = settings.seeds if is_drawn else settings.seeds[:1]
            for seed in seeds:
                began = time.monotonic()
                found = _evaluate(self._loaded, settings, self._model, seed)
                remarks = {one.name: one.remarks() for one in self._equipped}
                results += [replace(one, remarks=remarks.get(one.task, [])) for one in found]
                drawn = f", seed {seed}" if is_drawn else ""
                number = "their own" if shots is None else str(shots)
                self._say(f"tasks: {number} shots{drawn}: {time.monotonic() - began:.1f} s")
                for remark in [text for texts in remarks.values() for text in texts]:
                    self._say(remark)
        return results


def run_tasks(
    loaded: dict[str, Any], settings: TaskSettings, model: TaskModel, say: Say
) -> list[TaskResult]:
    """`TaskRun`, once; a collective call. `say` is the first rank's."""
    return TaskRun(loaded, settings, model, say).evaluate()


def _set_shots(
    tasks: dict[str, Any], own: dict[str, int | None], shots: int | None, say: Say
) -> None:
    """The number of demonstrations of each task; one whose YAML says 0 is never given any."""
    for name, task in tasks.items():
        number = own[name] if shots is None or own[name] == 0 else shots
        if shots and own[name] == 0:
            say(f"task {name}: num_fewshot is 0 in its YAML, so it stays without demonstrations")
        task.set_config(key="num_fewshot", value=number or 0)


def _evaluate(
    loaded: dict[str, Any], settings: TaskSettings, model: TaskModel, seed: int
) -> list[TaskResult]:
    """One pass of lm_eval over all tasks."""
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=seed)
    is_main = model.scorer.ranks.is_main
    with templates_compiled_once():
        found: Any = evaluate(
            lm=model,
            task_dict=loaded,
            limit=settings.limit,
            log_samples=settings.log_samples,
            bootstrap_iters=BOOTSTRAP_SAMPLES if is_main else 0,
        )
    if found is None:
        raise DataError("tasks: lm_eval gave no results.")
    return [_result(name, found, seed) for name in found["results"]]


def _result(name: str, found: Any, seed: int) -> TaskResult:
    shots = found["n-shot"].get(name)
    samples = found.get("samples") or {}
    return TaskResult(
        task=name,
        shots=shots if isinstance(shots, int) else None,
        seed=seed,
        results=dict(found["results"][name]),
        version=found["versions"].get(name),
        higher_is_better=dict(found["higher_is_better"].get(name) or {}),
        num_samples=dict(found["n-samples"].get(name) or {}),
        samples=samples.get(name),
    )


def format_results(results: Sequence[TaskResult]) -> str:
    """A table for people: a line for each task, number of demonstrations and metric."""
    groups: dict[tuple[str, int | None], list[TaskResult]] = {}
    for result in results:
        groups.setdefault((result.task, result.shots), []).append(result)
    several = any(len(group) > 1 for group in groups.values())
    lines = [
        (
            "task",
            "shots",
            "metric",
            "mean" if several else "value",
            "sd of seeds" if several else "std. error",
        )
    ]
    for (task, shots), group in groups.items():
        for key in group[0].numbers():
            values = [one.numbers().get(key, math.nan) for one in group]
            if several:
                spread = statistics.stdev(values) if len(values) > 1 else None
            else:
                spread = group[0].error_of(key)
            metric = key.removesuffix(",none")
            number = "own" if shots is None else str(shots)
            lines.append(
                (
                    task,
                    number,
                    metric,
                    _number(statistics.fmean(values)),
                    "" if spread is None else _number(spread),
                )
            )
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join(
        f"{line[0]:<{widths[0]}}  {line[1]:>{widths[1]}}  {line[2]:<{widths[2]}}  "
        f"{line[3]:>{widths[3]}}  {line[4]:>{widths[4]}}".rstrip()
        for line in lines
    )


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
