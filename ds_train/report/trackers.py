"""TensorBoard, Weights & Biases and MLflow as readers of the run's records.

A tracker gets what metrics.jsonl gets, nothing more. A missing package is found before the launch,
without importing anything; the package itself is imported when the run starts.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError
from ds_train.report.record import Record, TaskRecord

_MODULES = {
    "tensorboard": ("tensorboard", "torch.utils.tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}
"""Tracker -> (package that must be there, module that is used)."""


class Tracker(Protocol):
    """Something that is told every record."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """Hand over what is still held back."""


def check_trackers(config: RunConfig) -> list[str]:
    """One fault for each tracker whose package is not installed."""
    return [
        f"report.trackers: {name} needs the package {_MODULES[name][0]}, which is not installed; "
        f"pip install 'ds-train[{name}]' or leave it out."
        for name in config.report.trackers
        if importlib.util.find_spec(_MODULES[name][0]) is None
    ]


def open_trackers(config: RunConfig) -> list[Tracker]:
    """The recipe's trackers, opened; raises ConfigError where a package is missing."""
    if faults := check_trackers(config):
        raise ConfigError(faults)
    openers: dict[str, Callable[[RunConfig], Tracker]] = {
        "tensorboard": _TensorBoard,
        "wandb": _WandB,
        "mlflow": _MLflow,
    }
    return [openers[name](config) for name in config.report.trackers]


def _numbers(record: Record) -> dict[str, float]:
    """The record's finite numbers: `step/loss`, `evaluation/loss`, `task/piqa/2shot/seed1234/acc`,
    `communication/collectives/all_gather/bytes`.

    MLflow takes no commas in names, which lm_eval's metrics have.
    """
    prefix, values = record.type, asdict(record)
    if isinstance(record, TaskRecord):
        prefix = f"task/{record.task}/{record.shots}shot/seed{record.seed}"
        values = {
            re.sub(r"[^\w./ -]", "/", key.removesuffix(",none")): value
            for key, value in record.metrics.items()
        }
    values.pop("step", None)
    return {
        name: float(value)
        for name, value in _flat(prefix, values)
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _flat(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}/{key}", value)
        else:
            yield f"{prefix}/{key}", value


def _run_name(config: RunConfig) -> str:
    return config.report.run_name or Path(config.output_dir).name


class _TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, config: RunConfig) -> None:
        module = importlib.import_module(_MODULES["tensorboard"][1])
        self._writer: Any = module.SummaryWriter(str(Path(config.output_dir) / "tensorboard"))

    def write(self, record: Record) -> None:
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record.step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run of Weights & Biases; WANDB_MODE=offline (or disabled) is respected by wandb itself.

    An evaluation carries the step that was just written, and wandb drops what comes late, so the
    step is logged as a value and every metric is drawn over it.
    """

    def __init__(self, config: RunConfig) -> None:
        wandb: Any = importlib.import_module(_MODULES["wandb"][1])
        self._run = wandb.init(
            project=config.report.project,
            name=_run_name(config),
            dir=config.output_dir,
            config=config.model_dump(mode="json"),
        )
        for kind in ("step", "evaluation", "task", "communication"):
            self._run.define_metric(f"{kind}/*", step_metric="global_step")

    def write(self, record: Record) -> None:
        self._run.log({"global_step": record.step, **_numbers(record)})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow; the server is the one of MLFLOW_TRACKING_URI."""

    def __init__(self, config: RunConfig) -> None:
        self._mlflow: Any = importlib.import_module(_MODULES["mlflow"][1])
        self._mlflow.set_experiment(config.report.project)
        self._mlflow.start_run(run_name=_run_name(config))
        self._mlflow.log_dict(config.model_dump(mode="json"), "recipe.json")

    def write(self, record: Record) -> None:
        self._mlflow.log_metrics(_numbers(record), step=record.step)

    def close(self) -> None:
        self._mlflow.end_run()
