"""Trackers: TensorBoard for real; wandb and mlflow as stand-ins that note what they are told."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError
from ds_train.report.record import EvaluationRecord, StepRecord
from ds_train.report.trackers import check_trackers, open_trackers


def config_with(folder: Path, *trackers: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output_dir": str(folder),
            "model": {"name_or_path": "base"},
            "data": {"train": [{"path": "train.jsonl"}]},
            "train": {"max_steps": 1},
            "report": {"trackers": list(trackers), "project": "my-project"},
        }
    )


def test_no_tracker_is_the_default(tmp_path: Path) -> None:
    assert open_trackers(config_with(tmp_path)) == []


def test_a_missing_package_is_said_before_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = config_with(tmp_path, "wandb")
    (fault,) = check_trackers(config)
    assert fault == (
        "report.trackers: wandb needs the package wandb, which is not installed; "
        "pip install 'ds-train[wandb]' or leave it out."
    )
    with pytest.raises(ConfigError, match="wandb needs the package"):
        open_trackers(config)


def test_tensorboard_reads_back_what_was_written(
    tmp_path: Path, step_record: StepRecord, evaluation_record: EvaluationRecord
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(config_with(tmp_path, "tensorboard"))
    for step in (1, 2):
        tracker.write(replace(step_record, step=step, loss=3.0 - step, grad_norm=math.nan))
    tracker.write(evaluation_record)
    tracker.close()

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == [(1, 2), (2, 1)]
    assert events.Scalars("evaluation/token_accuracy")[0].value == 0.75
    assert "step/grad_norm" not in events.Tags()["scalars"]


class FakeRun:
    """Takes the calls that trackers make, of wandb's run and of mlflow's module."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, args or kwargs))


def install_fake(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    for member, value in members.items():
        setattr(module, member, value)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda asked: object())


def test_wandb_is_told_the_recipe_and_every_record(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step_record: StepRecord,
    evaluation_record: EvaluationRecord,
) -> None:
    run, opened = FakeRun(), {}
    install_fake(monkeypatch, "wandb", init=lambda **given: opened.update(given) or run)
    (tracker,) = open_trackers(config_with(tmp_path / "first", "wandb"))
    tracker.write(step_record)
    tracker.write(evaluation_record)
    tracker.close()

    assert (opened["project"], opened["name"]) == ("my-project", "first")
    assert opened["config"]["train"]["max_steps"] == 1
    assert "mode" not in opened, "WANDB_MODE in the environment decides"
    logged = [args[0] for name, args in run.calls if name == "log"]
    assert [values["global_step"] for values in logged] == [1, 2]
    assert logged[0]["step/loss"] == 2.5
    assert logged[1]["evaluation/best"] == 1.0
    assert run.calls[-1][0] == "finish"


def test_mlflow_is_told_the_recipe_and_every_record(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step_record: StepRecord,
    evaluation_record: EvaluationRecord,
) -> None:
    logged: list[tuple[dict[str, float], int]] = []
    names: list[str] = []
    install_fake(
        monkeypatch,
        "mlflow",
        set_experiment=names.append,
        start_run=lambda run_name: names.append(run_name),
        log_dict=lambda values, file: names.append(file),
        log_metrics=lambda values, step: logged.append((values, step)),
        end_run=lambda: names.append("ended"),
    )
    (tracker,) = open_trackers(config_with(tmp_path / "first", "mlflow"))
    tracker.write(step_record)
    tracker.write(evaluation_record)
    tracker.close()

    assert names == ["my-project", "first", "recipe.json", "ended"]
    assert [step for _, step in logged] == [1, 2]
    assert logged[0][0]["step/tokens_per_second"] == 200.0
