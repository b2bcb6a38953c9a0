"""metrics.jsonl: a record comes back as it was, a resumed run has no step twice."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from ds_train.errors import CheckpointError
from ds_train.report.record import EvaluationRecord, Recorder, StepRecord, read_records


def written(path: Path, num_steps: int, example: StepRecord) -> Recorder:
    recorder = Recorder(path)
    for step in range(1, num_steps + 1):
        recorder.write(replace(example, step=step))
    return recorder


def test_records_come_back(
    tmp_path: Path, step_record: StepRecord, evaluation_record: EvaluationRecord
) -> None:
    recorder = Recorder(tmp_path / "metrics.jsonl")
    recorder.write(step_record)
    recorder.write(evaluation_record)
    assert read_records(tmp_path / "metrics.jsonl") == [step_record, evaluation_record]


def test_a_step_is_on_disk_before_the_next_one(tmp_path: Path, step_record: StepRecord) -> None:
    recorder = written(tmp_path / "metrics.jsonl", 1, step_record)
    assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")
    recorder.close()


def test_keys_are_those_of_the_contract(tmp_path: Path, step_record: StepRecord) -> None:
    written(tmp_path / "metrics.jsonl", 1, step_record).close()
    keys = list(json.loads((tmp_path / "metrics.jsonl").read_text()))
    assert keys == [
        "type",
        "step",
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens",
        "supervised_tokens",
        "total_tokens",
        "seconds",
        "tokens_per_second",
        "peak_memory_bytes",
    ]


def test_what_a_run_does_not_measure_is_left_out(
    tmp_path: Path, step_record: StepRecord, evaluation_record: EvaluationRecord
) -> None:
    path = tmp_path / "metrics.jsonl"
    recorder = Recorder(path)
    few = replace(step_record, unlikelihood=0.25, length_normalised=math.nan)
    ranked = replace(evaluation_record, rank_accuracy=0.75)
    for record in (few, ranked):
        recorder.write(record)
    step, evaluation = (json.loads(line) for line in path.read_text().splitlines())
    assert step["unlikelihood"] == 0.25 and step["length_normalised"] is None
    assert "language_modelling" not in step and "rank_chance" not in evaluation
    again, last = read_records(path)
    assert isinstance(again, StepRecord) and again.language_modelling is None
    assert again.length_normalised is not None and math.isnan(again.length_normalised)
    assert last == ranked


def test_not_a_number_is_null_in_the_file_and_nan_again_when_read(
    tmp_path: Path, step_record: StepRecord
) -> None:
    path = tmp_path / "metrics.jsonl"
    Recorder(path).write(replace(step_record, loss=math.nan, grad_norm=math.inf))
    assert '"loss": null' in path.read_text()
    (record,) = read_records(path)
    assert isinstance(record, StepRecord)
    assert math.isnan(record.loss)
    assert math.isnan(record.grad_norm)


def test_resume_cuts_off_what_came_after(
    tmp_path: Path, step_record: StepRecord, evaluation_record: EvaluationRecord
) -> None:
    path = tmp_path / "metrics.jsonl"
    recorder = written(path, 5, step_record)
    recorder.write(replace(evaluation_record, step=5))
    recorder.close()

    resumed = Recorder(path)
    kept = resumed.resume_at(3)
    resumed.write(replace(step_record, step=4, loss=1.25))

    assert [record.step for record in kept] == [1, 2, 3]
    assert [record.step for record in read_records(path)] == [1, 2, 3, 4]


def test_resume_at_zero_starts_over(tmp_path: Path, step_record: StepRecord) -> None:
    recorder = written(tmp_path / "metrics.jsonl", 2, step_record)
    assert recorder.resume_at(0) == []
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path, step_record: StepRecord) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 2, step_record).close()
    path.write_text(path.read_text() + '{"type": "step", "ste')
    assert [record.step for record in read_records(path)] == [1, 2]
    recorder = Recorder(path)
    recorder.resume_at(2)
    recorder.write(replace(step_record, step=3))
    assert [record.step for record in read_records(path)] == [1, 2, 3]


def test_a_broken_line_is_named(tmp_path: Path, step_record: StepRecord) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 1, step_record).close()
    path.write_text(path.read_text() + "what is this\n")
    with pytest.raises(CheckpointError, match="line 2 is not a record of a run"):
        read_records(path)


def test_no_file_means_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "metrics.jsonl") == []
