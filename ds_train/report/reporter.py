"""One mouth for everything that a run tells: its record, its progress and the trackers."""

from __future__ import annotations

from collections.abc import Sequence

from ds_train.config.run import RunConfig
from ds_train.data.quarantine import Rollback
from ds_train.paths import RunPaths
from ds_train.report.progress import Progress
from ds_train.report.record import Record, Recorder, RollbackRecord
from ds_train.report.trackers import Tracker, open_trackers
from ds_train.report.undone import keep_undone


class Reporter:
    """metrics.jsonl and everybody who reads along; on rank 0 only."""

    def __init__(
        self, config: RunConfig, paths: RunPaths, total_steps: int, start_step: int
    ) -> None:
        keep_undone(paths, start_step)
        self._recorder = Recorder(paths.metrics)
        self._kept = self._recorder.resume_at(start_step)
        self._trackers: list[Tracker] = open_trackers(config)
        self._progress = Progress(config.report, total_steps, start_step)

    def tell_rollbacks(self, rollbacks: Sequence[Rollback], step: int) -> None:
        """Record those that the record does not have (any more), as of `step`."""
        told = {one.number for one in self._kept if isinstance(one, RollbackRecord)}
        for number, one in enumerate(rollbacks, start=1):
            if number not in told:
                num = len(one.samples)
                self.write(RollbackRecord(step, number, one.step, one.reason, num, one.loss))

    def write(self, record: Record) -> None:
        """Record first; then show it, and hand it to the trackers."""
        self._recorder.write(record)
        self._progress.show(record)
        for tracker in self._trackers:
            tracker.write(record)

    def say(self, text: str) -> None:
        """A line beside the steps."""
        self._progress.say(text)

    def close(self) -> None:
        """Leave the terminal in order and let the trackers finish."""
        self._progress.close()
        self._recorder.close()
        for tracker in self._trackers:
            tracker.close()
