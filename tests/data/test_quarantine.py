"""Rows in quarantine: empty where they are, from their step on, in every later epoch, counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_store import store_of_lengths

from ds_train.config.data import DataConfig
from ds_train.data.order import StepPlan
from ds_train.data.quarantine import (
    Quarantine,
    Rollback,
    Sample,
    read_rollbacks,
    write_rollbacks,
)
from ds_train.data.row_plan import RowPlan
from ds_train.errors import CheckpointError
from ds_train.paths import RunPaths

LENGTHS = [3, 9, 16, 1, 7, 7, 2, 5, 12, 4, 6]


def _plan(*samples: int, step: int, packing: bool = True) -> StepPlan:
    config = DataConfig.model_validate(
        {"train": [{"path": "x.jsonl"}], "max_length": 16, "packing": packing}
    )
    rows = RowPlan.uniform(store_of_lengths(LENGTHS), config, 0, [1.0])
    bad = [Sample(one, "x", one) for one in samples]
    return StepPlan(rows, 3, None, Quarantine([Rollback(step, step, "loss = nan", bad)]))


@pytest.mark.parametrize("packing", [True, False])
def test_rows_with_the_sample_are_empty_from_its_step_on(packing: bool) -> None:
    plan = StepPlan(_plan(step=1, packing=packing).row_plan, 3)
    at = next(step for step in range(9) if step > 1 and 8 in plan.sample_ids(step))
    hidden = _plan(8, step=at + 1, packing=packing)
    num_hidden = 0
    for step in range(20):
        usual, now = plan.rows(step), hidden.rows(step)
        expected = [[] if step >= at and 8 in row else row.tolist() for row in usual]
        assert [row.tolist() for row in now] == expected
        num_hidden += sum(len(row) == 0 for row in now)
        samples = [one for row in expected for one in row]
        assert hidden.sample_ids(step).tolist() == samples
        assert hidden.num_tokens(step) == sum(LENGTHS[one] for one in samples)
        assert hidden.num_supervised(step) == sum(LENGTHS[one] - 1 for one in samples)
        assert hidden.tokens_before(step) == plan.tokens_before(step)
    assert num_hidden > 1  # in several epochs


def test_steps_before_it_stay_as_they_were() -> None:
    plan = _plan(*range(len(LENGTHS)), step=4)
    assert all(len(row) for step in range(3) for row in plan.rows(step))
    assert not any(len(row) for row in plan.rows(3))
    assert plan.num_supervised(3) == plan.num_tokens(3) == 0


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    assert read_rollbacks(paths) == []
    entry = Rollback(7, 6, "loss = nan", [Sample(3, "a", 30), Sample(5, "b", 0)])
    write_rollbacks(paths, [entry], "abc")
    assert read_rollbacks(paths, "abc") == [entry]
    assert Quarantine.of_run(str(tmp_path), "abc").first_step == 5


def test_of_other_data_it_is_refused(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    write_rollbacks(paths, [], "abc")
    with pytest.raises(CheckpointError, match=r"samples of other data \(fingerprint abc, now xyz"):
        read_rollbacks(paths, "xyz")


DAMAGED = ["", "{}", '{"data_fingerprint": "a", "rollbacks": [{"step": 1}]}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    paths = RunPaths(tmp_path)
    paths.quarantine.write_text(text)
    with pytest.raises(CheckpointError, match="can't be read"):
        read_rollbacks(paths)
