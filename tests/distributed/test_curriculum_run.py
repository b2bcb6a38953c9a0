"""Runs with a curriculum: what is delivered is what was planned, resumed or not, on any ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed.conftest import Results
from distributed.scenarios import SEQ_LEN, recipe
from ds_train.checkpoint.folder import latest_checkpoint, read_facts
from ds_train.config.run import RunConfig
from ds_train.data.prepare import prepare_data
from ds_train.evaluate.loss import evaluate_command
from ds_train.paths import RunPaths

pytestmark = pytest.mark.distributed


def _report(inputs: Path, run: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((inputs / "runs" / run / "curriculum.json").read_text())
    return facts


def test_both_ranks_together_saw_what_was_planned(two_ranks: Results, inputs: Path) -> None:
    facts, result = _report(inputs, "curriculum"), two_ranks["curriculum"]
    assert facts["measured_equals_predicted"] is True
    assert facts["measured"]["steps"] == 4
    assert facts["measured"]["steps_counted_from_the_plan"] == 0
    assert facts["measured"]["tokens"] == sum(result["tokens"])
    assert result["tokens"] == sorted(result["tokens"])  # longer samples are let in
    pools = [step["pool"] for step in facts["steps"]]
    assert pools == sorted(pools) and pools[0] < pools[-1] <= facts["num_samples"]
    assert any(line.startswith("times shown, by tenth") for line in result["said"])


@pytest.mark.parametrize(("run", "earlier"), [("cut-curriculum", 2), ("moved-curriculum", 3)])
def test_a_resumed_run_says_which_steps_it_counted_from_the_plan(
    two_ranks: Results, one_rank: Results, inputs: Path, run: str, earlier: int
) -> None:
    whole, facts = two_ranks["curriculum"], _report(inputs, run)
    resumed = (two_ranks if run.startswith("cut") else one_rank)[f"{run}-on"]
    exact = 0 if run.startswith("cut") else 1e-5  # another number of ranks rounds otherwise
    assert resumed["losses"] == pytest.approx(whole["losses"], rel=exact)
    assert facts["measured"]["steps_counted_from_the_plan"] == earlier
    assert facts["measured"]["steps"] == 4 - earlier
    assert facts["measured_equals_predicted"] is True
    assert (
        facts["measured"] | {"steps": 4, "steps_counted_from_the_plan": 0}
        == (_report(inputs, "curriculum")["measured"])
    )


def test_another_curriculum_is_refused(one_rank: Results) -> None:
    result = one_rank["other-curriculum"]
    assert result["kind"] == "CheckpointError"
    assert 'curriculum.order: "easy_to_hard" -> "hard_to_easy"' in result["error"]


def test_checkpoint_and_run_folder_name_the_difficulty(two_ranks: Results, inputs: Path) -> None:
    paths = RunPaths(inputs / "runs" / "curriculum")
    folder = latest_checkpoint(paths)
    assert folder is not None
    fingerprint = read_facts(folder).difficulty_fingerprint
    assert fingerprint == json.loads(paths.run_facts.read_text())["difficulty_fingerprint"]
    assert fingerprint == _report(inputs, "curriculum")["difficulty_fingerprint"] != ""


# Samples scored again during the run (metric: loss, refresh_at), after steps 2 and 4 of 8


def _measured(inputs: Path, run: str) -> list[np.ndarray]:
    folder = RunPaths(inputs / "runs" / run).difficulty
    assert len(list(folder.iterdir())) == 4
    return [np.fromfile(folder / f"step-{step:08d}.f32", "<f4") for step in (2, 4)]


def test_what_is_measured_again_changes_what_is_drawn(two_ranks: Results, inputs: Path) -> None:
    result, facts = two_ranks["refresh-z2"], _report(inputs, "refresh-z2")
    assert len(result["losses"]) == 8 and facts["measured_equals_predicted"] is True
    assert len(set(facts["difficulty_fingerprints"])) == 3
    first, second = _measured(inputs, "refresh-z2")
    assert len(first) == facts["num_samples"] and np.all(first > 0)
    assert second.mean() < first.mean()  # it has learned
    assert [line for line in result["said"] if line.startswith("difficulty: loss of ")] == [
        line for line in result["said"] if "measured again after step" in line
    ]
    assert sum("measured again after step" in line for line in result["said"]) == 2


@pytest.mark.parametrize("other", ["refresh-z0", "refresh-z1", "refresh-z3", "refresh-one"])
def test_stages_and_ranks_measure_alike_and_draw_the_same_rows(
    two_ranks: Results, one_rank: Results, inputs: Path, other: str
) -> None:
    whole, result = two_ranks["refresh-z2"], (two_ranks | one_rank)[other]
    assert result["rows"] == whole["rows"] and len(whole["rows"]) == 8
    assert result["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    for mine, theirs in zip(_measured(inputs, other), _measured(inputs, "refresh-z2"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    ("run", "whole"),
    [
        ("cut-refresh", "refresh-z2"),  # between the two boundaries
        ("border-refresh", "refresh-z2"),  # at the second one, before it was measured
        ("cut-refresh-packed", "refresh-packed"),  # with dropout
    ],
)
def test_a_run_resumed_over_a_boundary_equals_the_uninterrupted_one(
    two_ranks: Results, inputs: Path, run: str, whole: str
) -> None:
    resumed, expected = two_ranks[f"{run}-on"], two_ranks[whole]
    assert resumed["losses"] == expected["losses"]
    assert resumed["rows"] == expected["rows"]
    again = [line for line in resumed["said"] if "measured again after step" in line]
    assert len(again) == 1 and "after step 4" in again[0]
    facts = _report(inputs, run)
    assert facts["measured_equals_predicted"] is True
    assert facts["difficulty_fingerprints"] == _report(inputs, whole)["difficulty_fingerprints"]


def test_a_run_with_refreshes_moves_to_another_number_of_ranks(
    two_ranks: Results, one_rank: Results
) -> None:
    moved, whole = one_rank["moved-refresh-on"], two_ranks["refresh-z2"]
    assert moved["rows"] == whole["rows"]
    assert moved["losses"] == pytest.approx(whole["losses"], rel=1e-5)


# Rows that grow


@pytest.mark.parametrize("mode", SEQ_LEN)
def test_growing_rows_are_the_same_on_any_ranks_and_after_a_resume(
    two_ranks: Results, one_rank: Results, inputs: Path, mode: str
) -> None:
    whole, alone = two_ranks[f"seq-len-{mode}"], one_rank[f"seq-len-{mode}-one"]
    resumed = two_ranks[f"cut-seq-len-{mode}-on"]
    assert alone["rows"] == whole["rows"] == resumed["rows"] and len(whole["rows"]) == 4
    assert alone["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert alone["grad_norms"] == pytest.approx(whole["grad_norms"], rel=1e-4)
    assert resumed["losses"] == whole["losses"]
    assert resumed["evaluations"] == whole["evaluations"]
    facts = _report(inputs, f"seq-len-{mode}")
    assert facts["measured_equals_predicted"] is True
    assert facts["measured"]["tokens"] == sum(whole["tokens"])
    lengths = [step["row_length"] for step in facts["steps"]]
    start = SEQ_LEN[mode]["curriculum.seq_len"]["start"]
    assert lengths == sorted(lengths) and lengths[0] == start < lengths[-1]


def test_growing_rows_at_stage_3(two_ranks: Results) -> None:
    whole, sharded = two_ranks["seq-len-reshape"], two_ranks["seq-len-z3"]
    assert sharded["rows"] == whole["rows"]
    assert sharded["losses"] == pytest.approx(whole["losses"], rel=1e-5)


def test_a_run_with_growing_rows_is_evaluated_at_full_length(
    two_ranks: Results, inputs: Path
) -> None:
    """Its last evaluation is the loss of whole validation samples under its weights."""
    facts = _report(inputs, "seq-len-truncate")
    assert facts["tokens_cut_off"] > 0
    config = RunConfig.model_validate(recipe(inputs, "seq-len-truncate", SEQ_LEN["truncate"]))
    held_out = prepare_data(config, say=lambda text: None).validation
    assert held_out is not None and held_out.lengths.max() > facts["steps"][-1]["row_length"]
    result = evaluate_command(config.output_dir, say=lambda text: None)
    assert result["num_tokens"] == int(held_out.lengths.sum())
    assert two_ranks["seq-len-truncate"]["evaluations"][-1] == pytest.approx(
        result["loss"], rel=1e-5
    )
