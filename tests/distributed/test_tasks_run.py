"""Evaluation tasks in the middle of training: the same whatever the ranks and the ZeRO stage."""

from __future__ import annotations

from typing import Any

import pytest

from distributed.conftest import Results
from distributed.scenarios import STEPS

pytestmark = pytest.mark.distributed


def say(result: dict[str, Any]) -> dict[tuple[int, int], float]:
    """Perplexity by (step, shots)."""
    return {
        (step, shots): metrics["perplexity,none"]
        for step, task, shots, metrics in result["tasks"]
        if task == "say"
    }


@pytest.fixture(scope="module")
def one(one_rank: Results) -> dict[str, Any]:
    """One rank, ZeRO-2."""
    return one_rank["tasks-one"]


def test_both_tasks_are_evaluated_when_due_and_at_the_end(one: dict[str, Any]) -> None:
    found = [(step, task, shots) for step, task, shots, _ in one["tasks"]]
    assert found == [
        (step, task, shots) for step in (2, STEPS) for shots in (0, 2) for task in ("pick", "say")
    ]
    perplexities = say(one)
    assert perplexities[STEPS, 0] < perplexities[2, 0]  # they are the rows that it trains on
    assert perplexities[2, 0] != perplexities[2, 2]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_give_the_numbers_of_one(
    two_ranks: Results, one: dict[str, Any], stage: int
) -> None:
    result = two_ranks[f"tasks-z{stage}"]
    assert say(result) == pytest.approx(say(one), rel=1e-4)
    accuracies = [
        [metrics["acc,none"] for _, task, _, metrics in found["tasks"] if task == "pick"]
        for found in (result, one)
    ]
    # an answer that is as likely as another to five digits may fall on either side
    assert accuracies[0] == pytest.approx(accuracies[1], abs=1.5 / 60)


def test_training_does_not_notice(two_ranks: Results) -> None:
    for stage in (0, 1, 2, 3):
        with_tasks = two_ranks[f"tasks-z{stage}"]
        assert with_tasks["losses"] == two_ranks[f"lora-z{stage}-m4"]["losses"]


def test_what_a_stopped_run_owes_is_evaluated_when_it_goes_on(two_ranks: Results) -> None:
    assert two_ranks["cut-tasks"]["tasks"] == []
    assert two_ranks["cut-tasks-on"]["tasks"] == two_ranks["tasks-z2"]["tasks"]


def test_the_run_says_how_it_scores(two_ranks: Results) -> None:
    said = "\n".join(two_ranks["tasks-z3"]["said"])
    assert "scoring: what requests begin with in common is computed once (tried)" in said
