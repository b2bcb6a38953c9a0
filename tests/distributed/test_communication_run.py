"""What runs record of their communication; all but one are made for other tests anyway."""

from __future__ import annotations

import pytest

from distributed import scenarios
from distributed.conftest import Results

pytestmark = pytest.mark.distributed
NAMES = [
    f"{family}-z{stage}-m{micro}"
    for family in scenarios.FAMILIES
    for stage, micro in scenarios.LAYOUTS
]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_each_collective_are_those_of_the_plan(two_ranks: Results, name: str) -> None:
    (record,) = two_ranks[name]["communication"]
    assert (record["counted_step"], record["step"], record["ranks"]) == (3, 4, 2)
    assert record["bytes"] == pytest.approx(record["planned_bytes"], rel=0.02)
    for one, row in record["collectives"].items():
        assert one == "messages" or row["bytes"] == pytest.approx(row["planned_bytes"], rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_times_are_parts_of_their_steps(two_ranks: Results, name: str) -> None:
    (record,), found = two_ranks[name]["communication"], two_ranks[name]
    # each collective was blocking and counted once, so all of them fit into the step
    assert 0 < record["seconds"] < found["seconds"][record["counted_step"] - 1]
    assert all(row["seconds"] > 0 for row in record["collectives"].values())
    assert [seconds is None for seconds in found["exposed"]] == [False, False, True, True]
    for (least, most), slowest in zip(found["computed"], found["slowest"], strict=True):
        assert 0 < least <= most and slowest in (0, 1)
    (line,) = [line for line in found["said"] if line.startswith("communication: ")]
    assert "where nothing overlapped" in line and "was the slowest in" in line


def test_the_record_comes_once_steps_overlap_again(two_ranks: Results) -> None:
    (record,), found = two_ranks["twelve-steps"]["communication"], two_ranks["twelve-steps"]
    assert (record["counted_step"], record["step"]) == (3, 5)
    assert 0 < record["exposed_seconds"] == found["exposed"][4]
    assert [number for number, one in enumerate(found["exposed"]) if one is None] == [2, 3]


def test_watching_and_counting_change_no_number(two_ranks: Results) -> None:
    unwatched = two_ranks["unwatched"]
    assert unwatched["communication"] == [] and unwatched["slowest"] == [None] * scenarios.STEPS
    assert unwatched["losses"] == two_ranks["lora-z3-m4"]["losses"]
    assert unwatched["grad_norms"] == two_ranks["lora-z3-m4"]["grad_norms"]
