"""Evaluation tasks during a run: lm_eval's, with the engine as it stands, on all ranks together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ds_train.data.encode import open_tokenizer
from ds_train.evaluate.scorer import RequestScorer, readable_tokens
from ds_train.evaluate.task_list import open_recipe_tasks
from ds_train.report.record import TaskRecord, read_records
from ds_train.train.due import Position, is_due
from ds_train.train.run import Run

Say = Callable[[str], Any]


class TaskEvaluations:
    """The tasks of a run, opened at their first evaluation; on every rank."""

    def __init__(self, run: Run, say: Say) -> None:
        self._run, self._say = run, say
        self._ready: Any = None

    @property
    def wanted(self) -> bool:
        """Whether the recipe names tasks."""
        return bool(self._run.config.evaluate.tasks)

    def is_due(self, before: Position, after: Position) -> bool:
        """Whether an evaluation is due after the step between two positions."""
        return self.wanted and is_due(self._run.config.evaluate.tasks_every, before, after)

    def is_owed(self, before: Position, after: Position) -> bool:
        """Whether the run was stopped between that step and its evaluation; collective."""
        if not self.is_due(before, after):
            return False
        made = ""
        if self._run.ranks.is_main:
            records = read_records(self._run.paths.metrics)
            found = any(isinstance(r, TaskRecord) and r.step == after.step for r in records)
            made = "yes" if found else "no"
        return self._run.ranks.first_text(made) == "no"

    def evaluate(self, step: int) -> list[TaskRecord]:
        """A record of each task, number of demonstrations and seed; a collective call."""
        if not self.wanted:
            return []
        began = time.monotonic()
        results = self._tasks().evaluate()
        seconds = time.monotonic() - began
        return [
            TaskRecord(
                step=step,
                task=result.task,
                shots=-1 if result.shots is None else result.shots,
                seed=result.seed,
                metrics=result.all_numbers(),
                seconds=seconds,
            )
            for result in results
        ]

    def _tasks(self) -> Any:
        """`TaskRun` with the engine."""
        if self._ready is None:
            # lm_eval is imported here, for runs that ask for it
            from ds_train.evaluate.generation import generator
            from ds_train.evaluate.task_model import TaskModel
            from ds_train.evaluate.task_options import TaskOptions
            from ds_train.evaluate.tasks import TaskRun, TaskSettings

            run, evaluate = self._run, self._run.config.evaluate
            tokenizer = open_tokenizer(run.config.model)
            model: Any = run.engine.module.model
            scorer = RequestScorer(
                run.engine, run.ranks, max_length=readable_tokens(model, tokenizer), say=self._say
            )
            settings = TaskSettings(
                tasks=tuple(evaluate.tasks),
                task_path=evaluate.task_path,
                shots=tuple(evaluate.shots),
                seeds=tuple(evaluate.seeds),
                options=TaskOptions(
                    demonstrations=evaluate.demonstrations,
                    draw=evaluate.draw,
                    calibration=tuple(evaluate.calibration),
                    normalise=tuple(evaluate.normalise),
                ),
            )
            asked = TaskModel(scorer, tokenizer, generate=generator(scorer, tokenizer))
            self._ready = TaskRun(open_recipe_tasks(run.config), settings, asked, self._say)
        return self._ready
