"""What a run does between its steps: evaluate, measure tasks and save, when it is due or owed.

Owed is what was due after the last step of an earlier start, which was asked to stop before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.launch import marks
from ds_train.report.record import Record
from ds_train.train.due import Position, is_due, position
from ds_train.train.evaluation import evaluate_held_out
from ds_train.train.run import Run
from ds_train.train.saving import Saving
from ds_train.train.tasks import TaskEvaluations


class BetweenSteps:
    """Takes what is known of a run after a step, and returns what evaluations make of it.

    Every method is a collective call.
    """

    def __init__(
        self, run: Run, saving: Saving, tasks: TaskEvaluations, report: Callable[[Record], Any]
    ) -> None:
        self._run, self._saving, self._tasks, self._report = run, saving, tasks, report

    def before_first(self, facts: CheckpointFacts) -> CheckpointFacts:
        """What this start begins with: evaluations of the untrained model, or those owed."""
        at_start = self._run.config.evaluate.at_start
        if at_start and facts.step == 0 != facts.evaluated_step:
            facts = self._evaluate(facts)
        elif self._owes_evaluation(facts):
            facts = self._evaluate(facts)
            facts = self._saving.save(facts, again=True)  # the checkpoint shall know of it
        if (facts.step == 0 and at_start) or self._owes_tasks(facts):
            self._evaluate_tasks(facts)
        return facts

    def after_step(self, facts: CheckpointFacts) -> CheckpointFacts:
        """What is due after the step that has just been made; not the last one."""
        config, (before, after) = self._run.config, self._last_step(facts)
        if is_due(config.evaluate.every, before, after):
            facts = self._evaluate(facts)
        if self._tasks.is_due(before, after):
            self._evaluate_tasks(facts)
        if is_due(config.checkpoint.every, before, after):
            facts = self._saving.save(facts, in_background=config.checkpoint.background)
        return facts

    def after_last(self, facts: CheckpointFacts) -> CheckpointFacts:
        """The last evaluation, unless one has just ended the run early, and the last checkpoint."""
        if not facts.ended_early:
            facts = self._evaluate(facts)
        self._evaluate_tasks(facts)
        return self._saving.save(facts)

    def _evaluate(self, facts: CheckpointFacts) -> CheckpointFacts:
        run = self._run
        if run.data.evaluated is None:
            return facts
        marks.begin(f"evaluation after step {facts.step}")
        facts, record = evaluate_held_out(run, facts)
        self._report(record)
        # with early stopping the untrained model may turn out to be the best one
        counts = facts.step > 0 or run.config.train.early_stopping is not None
        if record.best and counts and run.config.checkpoint.best:
            facts = self._saving.save(facts)
            self._saving.make_best(facts.step)
        return facts

    def _evaluate_tasks(self, facts: CheckpointFacts) -> None:
        marks.begin(f"tasks after step {facts.step}")
        for record in self._tasks.evaluate(facts.step):
            self._report(record)

    def _owes_evaluation(self, facts: CheckpointFacts) -> bool:
        if facts.step == 0 or facts.evaluated_step in (None, facts.step):
            return False
        return is_due(self._run.config.evaluate.every, *self._last_step(facts))

    def _owes_tasks(self, facts: CheckpointFacts) -> bool:
        return facts.step > 0 and self._tasks.is_owed(*self._last_step(facts))

    def _last_step(self, facts: CheckpointFacts) -> tuple[Position, Position]:
        """Where the run stood before the last step, and where it stands now."""
        plan = self._run.plan
        return position(plan, facts.step - 1), position(plan, facts.step)
