"""Rows that both ranks share train, are evaluated and go on as rows of one rank do."""

from __future__ import annotations

import pytest

from distributed import scenarios
from distributed.conftest import Results

pytestmark = pytest.mark.distributed
RELATIVE = 1e-5
WHOLE = {
    **{f"full-z{stage}": "full-one-z1" for stage in (1, 2, 3)},
    **{f"lora-z{stage}": "lora-one-z1" for stage in (0, 3)},
    "checkpointing-z3": "lora-one-z1",
    "seq-len-window": "seq-len-window-one",
}
"""The same recipe in one process."""


@pytest.mark.parametrize("kind", scenarios.SHARED_KINDS)
def test_every_step_is_that_of_whole_rows(two_ranks: Results, one_rank: Results, kind: str) -> None:
    shared = two_ranks[f"shared-{kind}"]
    whole = one_rank[WHOLE[kind]] if kind in WHOLE else two_ranks[kind]
    assert len(shared["losses"]) == scenarios.STEPS
    for name in ("losses", "grad_norms", "evaluations", "tokens"):
        assert shared[name] == pytest.approx(whole[name], rel=RELATIVE), name
    assert shared["rows"] == whole["rows"]


def test_tasks_are_scored_as_ever(two_ranks: Results) -> None:
    shared, whole = two_ranks["shared-tasks"]["tasks"], two_ranks["tasks-z2"]["tasks"]
    assert [one[:3] for one in shared] == [one[:3] for one in whole]
    for ours, theirs in zip(shared, whole, strict=True):
        assert ours[3] == pytest.approx(theirs[3], rel=RELATIVE)


@pytest.mark.parametrize("name", ["shared-cut", "whole-cut"])
def test_a_run_goes_on_with_shared_rows_and_without(two_ranks: Results, name: str) -> None:
    uninterrupted = two_ranks["lora-z2-m4"]
    assert two_ranks[name]["losses"] == pytest.approx(uninterrupted["losses"][:2], rel=RELATIVE)
    on = two_ranks[f"{name}-on"]  # the records of the whole run
    assert on["losses"] == pytest.approx(uninterrupted["losses"], rel=RELATIVE)
    assert on["grad_norms"] == pytest.approx(uninterrupted["grad_norms"], rel=RELATIVE)


def test_the_start_tells_that_it_was_tried(two_ranks: Results) -> None:
    said = "\n".join(two_ranks["shared-full-z3"]["said"])
    for words in (
        "2 processes share each, 2 layers exchange",
        "do not see each other",
        "1 group of 2 processes that share rows x 4 rows x 2 micro-batches = 8 rows per step",
    ):
        assert words in said
