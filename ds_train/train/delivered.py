"""What this rank has really trained on, added up for the report at the end of the run.

Batches are counted after their step was made: neither when they are planned nor when they are
built ahead. Every rank counts its own, and the sums of all ranks are written to curriculum.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import torch

from ds_train.curriculum.describe import draw_report, format_report
from ds_train.curriculum.report import Reporting
from ds_train.data.batch import Batch
from ds_train.engine.ranks import Ranks
from ds_train.paths import RunPaths, replace_text


class Delivered:
    """Sums over the batches of this rank; `reporting` None counts nothing."""

    def __init__(self, reporting: Reporting | None, ranks: Ranks, first_step: int) -> None:
        """`first_step`: the steps before it were made by an earlier start of the run."""
        self._reporting, self._ranks, self._first_step = reporting, ranks, first_step
        self._exposure = None if reporting is None else reporting.new_exposure()

    def add(self, step: int, batches: Iterable[Batch]) -> None:
        """The step was made with these batches."""
        if self._exposure is not None:
            for batch in batches:
                self._exposure.add(step, batch.sample_ids, batch.sample_tokens)

    def write(self, paths: RunPaths, say: Callable[[str], object]) -> None:
        """Add up all ranks and write curriculum.json and its picture; a collective call."""
        if self._reporting is None or self._exposure is None:
            return
        exposure, ranks = self._exposure, self._ranks
        exposure.of_segments = ranks.sum(torch.from_numpy(exposure.of_segments)).numpy()
        exposure.of_stages = ranks.sum(torch.from_numpy(exposure.of_stages)).numpy()
        if not ranks.is_main:
            return
        exposure.add_planned(range(self._first_step))
        facts = self._reporting.measured(exposure, steps_from_plan=self._first_step)
        replace_text(paths.curriculum, json.dumps(facts, indent=1) + "\n")
        for line in format_report(facts):
            say(line)
        draw_report(paths.root / "curriculum.png", facts, say)
