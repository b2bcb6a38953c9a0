"""Runs with a curriculum: what is delivered is what was planned, resumed or not, on any ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distributed.conftest import Results
from ds_train.checkpoint.folder import latest_checkpoint, read_facts
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
