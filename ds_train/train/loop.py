"""The run, from the first line to the last: set up, step after step, and what is due between them.

Read on from here: step.py (one optimizer step), ../model/head.py (the loss), ../ops/linear_ce.py
(its arithmetic). Evaluating and saving stand in between.py. This runs in every rank, started by the
deepspeed launcher.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.config.run import RunConfig
from ds_train.curriculum.plan import find_scores
from ds_train.data.loader import prefetch
from ds_train.data.prepare import open_data
from ds_train.data.quarantine import read_rollbacks
from ds_train.engine.process_group import start_process_group, stop_process_group
from ds_train.engine.ranks import Ranks
from ds_train.errors import quoted
from ds_train.launch import marks
from ds_train.launch.guard import die_with_parent
from ds_train.launch.process import leave_stop_mark
from ds_train.launch.watchdog import collective_seconds
from ds_train.report.record import Record, StepRecord
from ds_train.report.reporter import Reporter
from ds_train.train.between import BetweenSteps
from ds_train.train.communication import CommunicationWatch
from ds_train.train.delivered import Delivered
from ds_train.train.divergence import DivergenceGuard
from ds_train.train.due import position
from ds_train.train.guard import StopRequest
from ds_train.train.late import late_curriculum
from ds_train.train.refresh import Refresher
from ds_train.train.run import Run
from ds_train.train.saving import Saving
from ds_train.train.schedule import Schedule, num_warmup_steps
from ds_train.train.setup import set_up
from ds_train.train.step import StepResult, dropout_seed, train_step
from ds_train.train.tasks import TaskEvaluations
from ds_train.train.unfreeze import join_layers


def run(config: RunConfig) -> int:
    """Train as the recipe says, in this rank. Returns the exit code 0; faults are raised."""
    die_with_parent()
    request = StopRequest()
    ranks = Ranks.from_environment()
    say = _say if ranks.is_main else _silent
    data = open_data(config)  # first: nobody may wait for it in a collective
    scores = find_scores(config, data)
    start_process_group(ranks, collective_seconds(config.cluster.hang_seconds))
    Loop(set_up(config, ranks, data, say, scores), request, say).train()
    # Not after an error: it would wait for ranks that are stuck, and hide the message.
    stop_process_group()
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    pass


class Loop:
    """The state that changes while a run goes on: how far it is and how good it has been."""

    def __init__(self, run: Run, request: StopRequest, say: Callable[[str], Any]) -> None:
        self.run, self.request, self._say = run, request, say
        self.facts: CheckpointFacts = run.start
        self.schedule = Schedule(
            run.config.train,
            total_steps=run.total_steps,
            warmup=num_warmup_steps(run.config.train, run.plan, run.total_steps),
            tokens_before=run.plan.tokens_before,
        )
        self.delivered = Delivered(run.reporting, run.ranks, run.start.step)
        self.refresher = Refresher(run, say)
        self.watch = CommunicationWatch(run, say)
        self.reporter: Reporter | None = None
        if run.ranks.is_main:
            request.watch(run.paths.stop)
            self.reporter = Reporter(run.config, run.paths, run.total_steps, run.start.step)
            self.reporter.tell_rollbacks(read_rollbacks(run.paths), run.start.step)
        self.saving = Saving(run, self.reporter.say if self.reporter is not None else say)
        tasks = TaskEvaluations(run, say)
        self.between = BetweenSteps(run, self.saving, tasks, self._report)

    def train(self) -> None:
        """Every step that is left, then the last evaluation and checkpoint."""
        run = self.run
        self._announce()
        marks.begin("save rehearsal")
        if self.facts.step < run.total_steps and not self.facts.ended_early:
            run.rehearse_save(self._say)
        guard = DivergenceGuard(
            run.paths,
            run.data,
            run.plan,
            run.ranks,
            rollback=run.config.train.rollback,
            recent_losses=self.facts.recent_losses,
            fp16=run.config.model.dtype == "fp16",
        )
        self.facts = self.between.before_first(self.facts)
        try:
            if self.facts.ended_early:
                self._finish()
                return
            for steps in self.refresher.stretches(self.facts.step):
                self.facts = replace(self.facts, refreshed=self.refresher.fingerprints)
                for step, batches in prefetch(steps, run.build_batches):
                    if self._step(step, batches, guard):
                        return
                    if self.facts.ended_early:
                        self._finish()
                        return
            self._finish()
        finally:
            self.saving.run_has_failed()
            if self.reporter is not None:
                self.reporter.close()

    def _announce(self) -> None:
        run = self.run
        self._say(f"step: {run.batch}; {run.total_steps:,} steps")
        if late := late_curriculum(run.config, self.schedule, run.plan):
            self._say(late)
        if self.facts.ended_early:
            self._say(f"this run is complete: it was ended early, after step {self.facts.step:,}")
        elif self.facts.step >= run.total_steps:
            self._say(f"this run is complete: all {run.total_steps:,} steps are made")

    def _step(self, step: int, batches: list[Any], guard: DivergenceGuard) -> bool:
        """One step and what is due after it; True when the run was asked to stop."""
        marks.begin_step(step + 1)
        if batches:
            stop = self._train(step, batches, guard)
        else:
            stop = False
            self.facts = replace(self.facts, step=step + 1)
            self._say(f"step {step + 1:,}: all its rows are in quarantine, so it is left out")
        if step + 1 == self.run.total_steps:  # `_finish` evaluates and saves that one
            return False
        if stop:
            # before anything else: whoever asked may not wait for long
            self.facts = self.saving.save(self.facts)
            self.request.answered()
            if self.run.ranks.any(self.request.signal_name is not None):
                leave_stop_mark()
            self._conclude()
            self._say(f"asked to stop: saved after step {step + 1:,}; the same command goes on")
            return True
        self.facts = self.between.after_step(self.facts)
        return False

    def _train(self, step: int, batches: list[Any], guard: DivergenceGuard) -> bool:
        """The update of a step and its record; True when some rank was asked to stop."""
        run, began = self.run, time.perf_counter()
        torch.manual_seed(dropout_seed(run.config.train.seed, step, run.ranks.rank))
        self.facts = join_layers(run, self.facts, position(run.plan, step), self._say)
        rate = self.schedule.rate(step)
        with self.watch.step():
            result = train_step(
                run.engine,
                batches,
                objective=run.objective(step),
                learning_rate=rate,
                stop=self.request.requested,
                count_next=self.watch.wants_count(step + 1),
            )
        guard.check(step + 1, result)
        self.delivered.add(step, batches)
        self.facts = replace(
            self.facts,
            step=step + 1,
            total_tokens=run.plan.tokens_before(step + 1),
            recent_losses=guard.recent_losses,
        )
        self._record(step, result, rate, time.perf_counter() - began)
        return result.stop

    def _record(self, step: int, result: StepResult, rate: float, seconds: float) -> None:
        """What a step was, and what communication was in one of the last."""
        plan = self.run.plan
        num_tokens = plan.num_tokens(step)
        more: dict[str, Any] = {**result.parts, **self.watch.pace(step + 1, result, seconds)}
        self._report(
            StepRecord(
                step=step + 1,
                loss=result.loss,
                grad_norm=result.grad_norm,
                learning_rate=rate,
                tokens=num_tokens,
                supervised_tokens=plan.num_supervised(step),
                total_tokens=self.facts.total_tokens,
                seconds=seconds,
                tokens_per_second=num_tokens / seconds,
                peak_memory_bytes=result.peak_memory_bytes,
                **more,
            )
        )
        if (counted := self.watch.record(step + 1)) is not None:
            self._report(counted)

    def _finish(self) -> None:
        """What comes after the last step, where this start made any."""
        if self.facts.step > self.run.start.step:
            self.facts = self.between.after_last(self.facts)
            self.delivered.write(self.run.paths, self._say)
            self._conclude()
        why = f" (ended early, {self.facts.num_not_better} evaluations were not better)"
        self._say(
            f"done: {self.facts.step:,} steps{why if self.facts.ended_early else ''}; everything "
            f"lies in {quoted(self.run.paths.root)}"
        )

    def _conclude(self) -> None:
        """What communication was in this process's steps."""
        if (counted := self.watch.record(self.facts.step, last=True)) is not None:
            self._report(counted)
        if (line := self.watch.summary.line()) is not None:
            self._say(line)

    def _report(self, record: Record) -> None:
        if self.reporter is not None:
            self.reporter.write(record)
            self.watch.summary.add(record)
