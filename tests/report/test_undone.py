"""undone.jsonl: what a run that goes on cuts off its record is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from ds_train.errors import CheckpointError
from ds_train.paths import RunPaths
from ds_train.report.record import EvaluationRecord, Recorder, StepRecord
from ds_train.report.undone import keep_undone, read_undone


@pytest.fixture
def paths(tmp_path: Path, step_record: StepRecord, evaluation_record: EvaluationRecord) -> RunPaths:
    """Five steps and an evaluation after the fourth."""
    paths = RunPaths(tmp_path)
    recorder = Recorder(paths.metrics)
    for step in range(1, 6):
        recorder.write(replace(step_record, step=step, loss=math.nan if step == 5 else 1.0 * step))
        if step == 4:
            recorder.write(replace(evaluation_record, step=4))
    recorder.close()
    return paths


def test_what_is_cut_off_is_kept(paths: RunPaths) -> None:
    keep_undone(paths, 3)
    (one,) = read_undone(paths)
    assert (one.from_step, one.reached_step) == (3, 5)
    assert [record.step for record in one.records] == [4, 4, 5]
    assert [record.step for record in one.steps] == [4, 5]
    assert one.steps[0].loss == 4.0 and math.isnan(one.steps[1].loss)


def test_nothing_lost_is_nothing_written(paths: RunPaths) -> None:
    keep_undone(paths, 5)
    keep_undone(RunPaths(paths.root / "new"), 0)
    assert not paths.undone.exists() and read_undone(paths) == []


def test_a_kill_before_the_cut_does_not_count_twice(paths: RunPaths) -> None:
    """The same records come again; steps that were really made again took other times."""
    keep_undone(paths, 3)
    keep_undone(paths, 3)
    assert len(paths.undone.read_text().splitlines()) == 2
    assert len(read_undone(paths)) == 1
    paths.metrics.write_text(paths.metrics.read_text().replace('"seconds": 0.5', '"seconds": 0.6'))
    keep_undone(paths, 3)
    assert len(read_undone(paths)) == 2


def test_a_broken_line_is_named(paths: RunPaths) -> None:
    keep_undone(paths, 3)
    paths.undone.write_text(paths.undone.read_text() + '{"from_step": 1}\n')
    with pytest.raises(CheckpointError, match=r"line 2 is not a stretch of undone steps"):
        read_undone(paths)


def test_a_folder_that_can_not_be_written_is_told(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ds_train.report.undone.replace_text", full)
    with pytest.raises(CheckpointError, match=r"steps 4 to 5, which are made again; make room"):
        keep_undone(paths, 3)
