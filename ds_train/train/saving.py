"""When a run's checkpoints are written: now, or behind the steps; and how long the run waits.

The latest ones and the best one stay. What is written behind the steps is waited for by whoever
saves next, and by nobody when the run fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ds_train.checkpoint.background import BackgroundSave
from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.checkpoint.state import point_to, prune, save_checkpoint
from ds_train.launch import marks
from ds_train.train.run import Run

_LAST_SAVE_SECONDS = 60.0
"""What a checkpoint that is being written has left when the run fails."""


class Saving:
    """The checkpoints of one start of a run. `say` is heard on the main rank only."""

    def __init__(self, run: Run, say: Callable[[str], Any]) -> None:
        self._run, self._say = run, say
        self._step: int | None = run.start.step or None
        self._behind: BackgroundSave | None = None

    def save(
        self, facts: CheckpointFacts, *, in_background: bool = False, again: bool = False
    ) -> CheckpointFacts:
        """Write what stands after `facts.step` steps, unless it is saved; a collective call.

        Args:
            again: also where a checkpoint of that step is there, since the facts have changed.

        Returns the facts that were saved.
        """
        run = self._run
        if self._step == facts.step and not again:
            self.finish()  # whoever saves again wants to have it
            return facts
        marks.begin(f"checkpoint of step {facts.step}")
        facts = replace(facts, num_updates=run.engine.num_updates, loss_scale=run.engine.loss_scale)
        self.finish()
        self._step = facts.step
        if in_background:
            self._behind = BackgroundSave(run.paths, run.engine, facts, run.write_extra)
        else:
            began = time.perf_counter()
            folder = save_checkpoint(run.paths, run.engine, facts, run.write_extra)
            self._written(folder, time.perf_counter() - began)
        return facts

    def make_best(self, step: int) -> None:
        """The checkpoint of this step, which is saved, is the best one so far."""
        if self._run.ranks.is_main:
            paths = self._run.paths
            point_to(paths.checkpoints / "best", paths.checkpoint(step).name)
            prune(paths, self._run.config.checkpoint.keep)  # the best so far is best no more

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one; a collective call."""
        if self._behind is not None:
            marks.begin(f"waiting for {self._behind.folder.name}")
            folder = self._behind.join()  # should that fail, `run_has_failed` still waits for it
            waited_seconds = self._behind.waited_seconds
            self._behind = None
            self._written(folder, waited_seconds)

    def run_has_failed(self) -> None:
        """Let what is being written come to its end, for a moment; no collective any more."""
        if self._behind is not None:
            self._behind.let_finish(_LAST_SAVE_SECONDS)

    def _written(self, folder: Path, waited_seconds: float) -> None:
        if self._run.ranks.is_main:
            prune(self._run.paths, self._run.config.checkpoint.keep)
            self._say(f"checkpoint: {folder}, waited {waited_seconds:.2f} s")
