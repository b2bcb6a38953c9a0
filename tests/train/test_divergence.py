"""When a step counts as diverged, and what the guard then does: go back, or end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_store import store_of_lengths

from ds_train.config.train import RollbackConfig
from ds_train.data.quarantine import read_rollbacks
from ds_train.errors import RolledBack, TrainingDiverged
from ds_train.paths import RunPaths
from ds_train.train.divergence import MAX_SKIPPED_STEPS, DivergenceGuard
from ds_train.train.step import StepResult


def result(loss: float = 1.0, grad_norm: float = 1.0) -> StepResult:
    return StepResult(loss, {}, grad_norm, stop=False, peak_memory_bytes=0)


def guard(
    folder: Path, rollback: dict[str, Any] | None = None, *, fp16: bool = False, **rest: Any
) -> DivergenceGuard:
    """Of a run whose step n trains on the samples 2 n - 2 and 2 n - 1."""
    store = store_of_lengths([4] * 100)
    data: Any = SimpleNamespace(train=store, source_names=["a.jsonl"], fingerprint="f")
    plan: Any = SimpleNamespace(sample_ids=lambda step: np.array([2 * step, 2 * step + 1]))
    ranks: Any = SimpleNamespace(is_main=True, barrier=lambda: None)
    config = None if rollback is None else RollbackConfig.model_validate(rollback)
    return DivergenceGuard(
        RunPaths(folder),
        data,
        plan,
        ranks,
        rollback=config,
        recent_losses=rest.get("recent", []),
        fp16=fp16,
    )


@pytest.mark.parametrize("bad", [result(math.nan), result(math.inf), result(1.0, math.nan)])
def test_without_rollback_the_run_ends_and_names_the_samples(
    tmp_path: Path, bad: StepResult
) -> None:
    with pytest.raises(
        TrainingDiverged, match=r"not finite, so the run stops.*train\.rollback"
    ) as e:
        guard(tmp_path).check(5, bad)
    assert not isinstance(e.value, RolledBack)
    facts = json.loads((tmp_path / "diverged_step_5.json").read_text())
    assert [one["sample"] for one in facts["samples"]] == [8, 9]
    assert not (tmp_path / "quarantine.json").exists()


def test_attempts_are_counted_over_all_starts(tmp_path: Path) -> None:
    for step in (5, 7):
        with pytest.raises(RolledBack, match="2 samples are in quarantine"):
            guard(tmp_path, {"attempts": 2}).check(step, result(math.nan))
    with pytest.raises(TrainingDiverged, match=r"attempts = 2 are used up \(steps 5, 7\)") as e:
        guard(tmp_path, {"attempts": 2}).check(9, result(math.nan))
    assert not isinstance(e.value, RolledBack)
    assert [one.step for one in read_rollbacks(RunPaths(tmp_path))] == [5, 7]


def test_the_steps_before_it_can_go_too_but_none_before_the_first(tmp_path: Path) -> None:
    with pytest.raises(RolledBack):
        guard(tmp_path, {"steps": 3}).check(2, result(math.nan))
    (entry,) = read_rollbacks(RunPaths(tmp_path))
    assert entry.first_step == 1 and entry.loss is None
    assert [one.sample for one in entry.samples] == [0, 1, 2, 3]


def test_a_spike_is_a_loss_above_so_many_times_the_median(tmp_path: Path) -> None:
    watch = guard(tmp_path, {"spike": 2.0, "window": 3})
    for step, loss in enumerate([9.0, 1.0, 1.1, 2.1, 1.2], start=1):
        watch.check(step, result(loss))  # 9.0 has nothing before it; 2.1 < 2 x 1.1
    assert watch.recent_losses == [1.1, 2.1, 1.2]
    with pytest.raises(RolledBack, match=r"loss = 2\.5, more than .*spike = 2 times"):
        watch.check(6, result(2.5))
    (entry,) = read_rollbacks(RunPaths(tmp_path))
    assert entry.loss == 2.5


def test_a_resumed_run_knows_the_losses_before_it(tmp_path: Path) -> None:
    watch = guard(tmp_path, {"spike": 2.0, "window": 3}, recent=[5.0, 1.0, 1.0, 1.0])
    with pytest.raises(RolledBack):
        watch.check(6, result(2.5))


def test_without_spike_a_high_loss_is_no_divergence_and_nothing_is_kept(tmp_path: Path) -> None:
    watch = guard(tmp_path, {"attempts": 1})
    for step in range(1, 40):
        watch.check(step, result(1.0 if step < 39 else 1e6))
    assert watch.recent_losses == []


def test_overflows_of_fp16_are_counted_not_rolled_back(tmp_path: Path) -> None:
    watch = guard(tmp_path, {"attempts": 1}, fp16=True)
    for step in range(1, MAX_SKIPPED_STEPS):
        watch.check(step, result(1.0, math.inf))
    with pytest.raises(RolledBack):
        watch.check(MAX_SKIPPED_STEPS, result(1.0, math.inf))
