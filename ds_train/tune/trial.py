"""One trial: `ds-train train` on the recipe with other settings, ended after a few steps.

It is the real run, with the rows that the real run begins with; only what is no part of a step
(evaluation, checkpoints, trackers) is left out. It is killed when it has made its steps, so that it
neither evaluates nor saves at its end.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ds_train.compare.children import LOG, last_error, start_logged
from ds_train.config.load import dump_recipe
from ds_train.config.run import RunConfig
from ds_train.errors import CheckpointError
from ds_train.paths import RunPaths
from ds_train.report.record import StepRecord, read_records

WARM_UP_STEPS = 2
"""Steps at the start that are not counted: memory is found, buffers and kernels are made."""
_POLL_SECONDS = 0.2
_END_SECONDS = 60.0
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "cannot allocate memory", "killed by sigkill")


@dataclass(frozen=True)
class Measured:
    """What the steps of one trial took."""

    seconds: float
    tokens_per_second: float
    peak_bytes: int


@dataclass(frozen=True)
class Failed:
    """Why a trial made too few steps."""

    fault: str
    out_of_memory: bool = False


def trial_recipe(config: RunConfig, folder: Path) -> RunConfig:
    """The recipe of a trial: nothing but its steps."""
    update: dict[str, Any] = {
        "output_dir": str(folder),
        "checkpoint": config.checkpoint.model_copy(update={"every": None, "rehearse": False}),
        "evaluate": config.evaluate.model_copy(
            update={"every": None, "at_start": False, "tasks": [], "tasks_every": None}
        ),
        "report": config.report.model_copy(update={"trackers": [], "progress": "none"}),
        "train": config.train.model_copy(update={"early_stopping": None}),
    }
    return config.model_copy(update=update)


def run_trial(
    config: RunConfig, folder: Path, *, num_steps: int, most_seconds: float
) -> Measured | Failed:
    """Run a trial in a new folder; `config` is what `trial_recipe` gave."""
    folder.mkdir(parents=True)
    recipe, log = folder / "trial.yaml", folder / LOG
    recipe.write_text(dump_recipe(config), encoding="utf-8")
    with log.open("w", encoding="utf-8") as file:
        process = start_logged([sys.executable, "-m", "ds_train", "train", str(recipe)], file)
        try:
            steps = _wait(process, folder, WARM_UP_STEPS + num_steps, most_seconds)
        finally:
            _end(process)
    if len(steps) > WARM_UP_STEPS:
        counted = steps[WARM_UP_STEPS : WARM_UP_STEPS + num_steps]
        seconds = median(one.seconds for one in counted)
        tokens = sum(one.tokens for one in counted) / sum(one.seconds for one in counted)
        return Measured(seconds, tokens, max(one.peak_memory_bytes for one in counted))
    return _failure(log, process.returncode, most_seconds)


def _wait(
    process: subprocess.Popen[bytes], folder: Path, num_steps: int, most_seconds: float
) -> list[StepRecord]:
    """The steps made when there are enough of them, the process has ended, or time is up."""
    deadline = time.monotonic() + most_seconds
    while True:
        ended = process.poll() is not None  # asked before the records: none may come after
        steps = _steps(folder)
        if ended or len(steps) >= num_steps or time.monotonic() > deadline:
            return steps
        time.sleep(_POLL_SECONDS)


def _steps(folder: Path) -> list[StepRecord]:
    try:
        records = read_records(RunPaths(folder).metrics)
    except CheckpointError:
        return []
    return [one for one in records if isinstance(one, StepRecord)]


def _end(process: subprocess.Popen[bytes]) -> None:
    """A second signal tells `ds-train train` to kill its ranks instead of letting them save."""
    for number in (signal.SIGTERM, signal.SIGINT):  # two of a kind could become one
        if process.poll() is None:
            process.send_signal(number)
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _failure(log: Path, code: int | None, most_seconds: float) -> Failed:
    text = log.read_text(encoding="utf-8", errors="replace").lower()
    if any(words in text for words in _OUT_OF_MEMORY):
        return Failed("out of memory", out_of_memory=True)
    if (error := last_error(log)) is not None:
        return Failed(error.splitlines()[0])
    if code is not None and code >= 128:
        return Failed(f"too few steps within {most_seconds:.0f} s")
    return Failed(f"ended with exit code {code}; see {log}")
