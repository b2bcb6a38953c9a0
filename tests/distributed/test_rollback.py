"""A step whose loss is not finite: back to the checkpoint before it, and on without its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ds_train.data.quarantine import read_rollbacks
from ds_train.paths import RunPaths

pytestmark = pytest.mark.distributed
Results = dict[str, dict[str, Any]]


def test_every_rank_ends_together_and_the_step_is_in_quarantine(
    two_ranks: Results, inputs: Path
) -> None:
    assert two_ranks["rolled-back"]["kind"] == "RolledBack"
    assert "rollback 1 of 1" in two_ranks["rolled-back"]["error"]
    (entry,) = read_rollbacks(RunPaths(inputs / "runs" / "rolled-back"))
    assert (entry.step, entry.first_step) == (3, 3)
    assert len({one.sample for one in entry.samples}) == 8


def test_the_next_start_leaves_the_rows_out_and_comes_to_the_end(
    two_ranks: Results, inputs: Path
) -> None:
    result = two_ranks["rolled-back-on"]
    assert result["steps"] == [1, 2, 4]
    assert "step 3: all its rows are in quarantine, so it is left out" in result["said"]
    (told,) = result["rollbacks"]
    assert (told["step"], told["diverged_step"], told["samples"]) == (2, 3, 8)
    assert [len(row) for row in result["rows"][2]] == [0] * 8
    (entry,) = read_rollbacks(RunPaths(inputs / "runs" / "rolled-back"))
    left_out = {one.sample for one in entry.samples}
    assert left_out.isdisjoint(sample for row in result["rows"][3] for sample in row)


def test_it_goes_on_alike_on_one_rank(two_ranks: Results, one_rank: Results) -> None:
    assert one_rank["rolled-back-one"]["kind"] == "RolledBack"
    two, one = two_ranks["rolled-back-on"], one_rank["rolled-back-one-on"]
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-5)
    assert one["evaluations"] == pytest.approx(two["evaluations"], rel=1e-5)
