"""`ds-train report`: a run with a rollback, a restart and two failures, from files written by hand.

step 3 diverged, back to 2 (its rows are left out); killed in 6, restarted from 5; a full disk
in 8, started again by hand from 5; the last launch failed after step 10 and nobody went on
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ds_train.cli import main
from ds_train.paths import RunPaths
from ds_train.report.incidents import Incident, find_incidents
from ds_train.report.record import (
    EvaluationRecord,
    Record,
    RollbackRecord,
    StepRecord,
    read_records,
    to_json,
    to_values,
)
from ds_train.report.run_figure import RunCurves, names_of, run_figure
from ds_train.report.run_report import curves_of, markdown
from ds_train.report.undone import read_undone

NAN = "loss = nan, gradient norm = nan: not finite"


@pytest.fixture
def step(step_record: StepRecord) -> Any:
    """A step with a loss that says which one it is and how often it had been undone before."""

    def make(number: int, times: int = 0) -> StepRecord:
        return replace(step_record, step=number, loss=10.0 - number + times / 8)

    return make


@pytest.fixture
def paths(tmp_path: Path, step: Any, evaluation_record: EvaluationRecord) -> RunPaths:
    """The run folder."""
    paths = RunPaths(tmp_path / "first")
    paths.root.mkdir()
    kept: list[Record] = [step(1), step(2), RollbackRecord(2, 1, 3, NAN, samples=8)]
    kept += [step(number) for number in (4, 5, 6, 7, 8, 9, 10)]
    kept.append(replace(evaluation_record, step=10))
    paths.metrics.write_text("".join(to_json(one) + "\n" for one in kept))
    stretches = [(5, 6, [step(6, 1)]), (5, 8, [step(6, 2), step(7, 2), step(8, 2)])]
    write_lines(
        paths.undone,
        *(
            {"from_step": since, "reached_step": reached, "records": [*map(to_values, some)]}
            for since, reached, some in stretches
        ),
    )
    killed = {"cause": "rank 1 was killed by SIGKILL in step 7.", "kind": "killed"}
    more = {"lost_hosts": ["node-1"], "world_size": 1, "restarts_left": 0, "time": "now"}
    write_lines(paths.restarts, {**killed, "reached_step": 6, "from_step": 5, **more})
    write_lines(
        paths.failures,
        {"time": "now", "kind": "disk", "cause": "no | space", "reached_step": 8},
        {"time": "now", "kind": "diverged", "cause": "see above", "reached_step": 10},
    )
    (paths.root / "diverged_step_11.json").write_text(json.dumps({"step": 11, "reason": "spike"}))
    return paths


def write_lines(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def incidents_of(paths: RunPaths) -> list[Incident]:
    return find_incidents(paths, read_records(paths.metrics), read_undone(paths))


def test_every_interruption_is_found_with_its_cause(paths: RunPaths) -> None:
    found = incidents_of(paths)
    assert [(one.kind, one.step, one.from_step, one.num_lost) for one in found] == [
        ("rollback", 3, 2, 1),
        ("restart", 6, 5, 1),
        ("by hand", 8, 5, 3),
        ("failure", 10, None, 0),
    ]
    causes = [NAN, "rank 1 was killed by SIGKILL in step 7.", "no | space", "step 11: spike"]
    assert [one.cause for one in found] == causes
    assert [one.seconds_lost for one in found] == [0, 0.5, 1.5, 0]
    assert names_of(found) == ["B1", "R1", "H1", "F1"]


def test_the_report_says_what_was_lost(paths: RunPaths) -> None:
    text = markdown("first", read_records(paths.metrics), incidents_of(paths), "loss.png")
    for line in (
        "- step 10 reached: 9 steps with 100 tokens count, in 4.5 s",
        "- loss 9.0000 in step 1, 0.0000 in step 10",
        "![losses over steps](loss.png)",
        f"| B1 | rolled back | in step 3 | {NAN} | `step-00000002` | step 3 (1) | 8 samples |",
        "| R1 | restarted by itself | after step 6 | rank 1 was killed by SIGKILL in step 7. | "
        "`step-00000005`, 1 process, without node-1 | step 6 (1) |  |",
        "| H1 | started again by hand or scheduler | after step 8 | no \\| space | "
        "`step-00000005` | steps 6 to 8 (3) |  |",
        "| F1 | failed | after step 10 | step 11: spike |  | nothing |  |",
    ):
        assert line in text.splitlines(), text
    assert "Lost in all: 5 steps; 2.0 s in those that had been recorded" in text


def test_a_restart_whose_checkpoint_was_damaged_went_back_further(
    paths: RunPaths, step: Any
) -> None:
    """What was really gone on from stands in undone.jsonl."""
    records = [to_values(step(number)) for number in (3, 4, 5, 6)]
    write_lines(paths.undone, {"from_step": 2, "reached_step": 6, "records": records})
    (restart,) = [one for one in incidents_of(paths) if one.kind == "restart"]
    assert (restart.from_step, restart.num_lost, restart.seconds_lost) == (2, 4, 2.0)


def test_steps_lost_without_a_word_say_so(paths: RunPaths) -> None:
    paths.failures.unlink()
    (one,) = [one for one in incidents_of(paths) if one.kind == "by hand"]
    assert one.cause.startswith("not written down")


def test_an_undisturbed_run_says_so(paths: RunPaths) -> None:
    for path in (paths.undone, paths.restarts, paths.failures):
        path.unlink()
    records = [one for one in read_records(paths.metrics) if not isinstance(one, RollbackRecord)]
    text = markdown("first", records, find_incidents(paths, records, []), None)
    assert text.endswith("## Interruptions\n\nNone: every step was made once.\n")
    assert "![" not in text


def figure_axes(paths: RunPaths) -> Any:
    records, undone = read_records(paths.metrics), read_undone(paths)
    curves = curves_of(records, undone, find_incidents(paths, records, undone))
    (axes,) = run_figure(curves).axes
    return axes


def test_the_picture_has_the_run_and_what_was_undone(paths: RunPaths) -> None:
    lines = figure_axes(paths).lines
    (run,) = [one for one in lines if str(one.get_label()).startswith("the run:")]
    assert run.get_xdata().tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert run.get_ydata().tolist() == [9, 8, 6, 5, 4, 3, 2, 1, 0]
    undone = [one for one in lines if one.get_linestyle() == "--" and one.get_color() == "0.3"]
    assert [one.get_xydata().tolist() for one in undone] == [
        [[5, 5], [6, 4.125]],
        [[5, 5], [6, 4.25], [7, 3.25], [8, 2.25]],
    ]
    assert run.get_linewidth() > max(one.get_linewidth() for one in undone)
    grounds = [(one.get_x(), one.get_x() + one.get_width()) for one in figure_axes(paths).patches]
    assert grounds == [(2, 3), (5, 6), (5, 8)]


def test_each_interruption_has_its_line_its_name_and_its_entry_in_the_legend(
    paths: RunPaths,
) -> None:
    axes = figure_axes(paths)
    upright = [one for one in axes.lines if list(one.get_ydata()) == [0, 1]]
    assert [one.get_xdata()[0] for one in upright] == [3, 6, 8, 10]
    assert [text.get_text() for text in axes.texts] == ["B1", "R1", "H1", "F1"]
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [entry for entry in entries if entry[:2] in ("B1", "R1", "H1", "F1")] == [
        "B1: rolled back: the step diverged",
        "R1: restarted by itself",
        "H1: started again by hand or scheduler",
        "F1: failed",
    ]


def test_kinds_differ_without_colour_too() -> None:
    kinds = ("rollback", "restart", "by hand", "failure")
    found = [Incident(kind, step, 0, "") for step, kind in enumerate(kinds, start=1)]
    (axes,) = run_figure(RunCurves([(1, 1.0), (9, 2.0)], incidents=found)).axes
    looks = {str(one._dash_pattern) for one in axes.lines if list(one.get_ydata()) == [0, 1]}
    assert len(looks) == 4


def test_a_spike_does_not_flatten_the_curve() -> None:
    found = [Incident("rollback", 3, 2, "spike", loss=900.0)]
    curves = RunCurves([(1, 1.0), (2, 2.0)], undone=[[(2, 2.0), (3, 700.0)]], incidents=found)
    (axes,) = run_figure(curves).axes
    high = axes.get_ylim()[1]
    assert 2.0 < high < 3.0
    marks = {one.get_marker(): one for one in axes.lines if one.get_marker() in ("^", "X")}
    assert marks["^"].get_xydata().tolist() == [[3, high]]
    assert marks["X"].get_xydata().tolist() == [[3, high]]


def test_labels_of_neighbours_stand_one_above_the_other() -> None:
    found = [Incident("restart", step, 0, "") for step in (50, 51, 90)]
    (axes,) = run_figure(RunCurves([(1, 1.0), (100, 2.0)], incidents=found)).axes
    heights = [text.xyann[1] for text in axes.texts]
    assert heights[1] > heights[0] == heights[2]


def test_the_command_writes_both_files(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(paths.root)]) == 0
    assert paths.loss_curve.read_bytes().startswith(b"\x89PNG")
    assert paths.report.read_text() in capsys.readouterr().out


def test_a_folder_without_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "has no metrics.jsonl, so no step of a run was made there" in capsys.readouterr().err
