"""`ds-train train` as a user runs it: resume after kill -9, SIGTERM, exit codes, no orphans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from distributed import scenarios
from distributed.conftest import Results
from ds_train.checkpoint.folder import complete_checkpoints
from ds_train.config.load import load_recipe
from ds_train.paths import RunPaths
from ds_train.report.record import StepRecord, read_records
from ds_train.tune.trial import Measured, run_trial, trial_recipe

pytestmark = pytest.mark.distributed
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def recipe(inputs: Path, tmp_path: Path) -> Path:
    """A recipe of 12 steps that saves every 2, on two processes."""
    content = scenarios.recipe(inputs, "unused", scenarios.TWELVE_STEPS)
    content["output_dir"] = str(tmp_path / "run")
    content["checkpoint"] = {"every": "2 steps", "keep": 2}
    content["cluster"] = {"processes_per_node": 2}
    content["report"] = {"progress": "plain", "log_every": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(recipe: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command of a user, in a session of its own, with everything it prints in one stream."""
    return subprocess.Popen(
        [sys.executable, "-m", "ds_train", "train", str(recipe), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(process: subprocess.Popen[str], step: int) -> str:
    """What was printed until the line of a step."""
    printed = ""
    assert process.stdout is not None
    for line in process.stdout:
        printed += line
        if line.startswith(f"step {step}/"):
            return printed
    raise AssertionError(f"step {step} was never printed:\n{printed}")


def ranks_of(recipe: Path) -> list[psutil.Process]:
    """Training processes of this recipe that are alive."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(recipe) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def losses(recipe: Path) -> dict[int, float]:
    """Loss of each recorded step."""
    root = Path(yaml.safe_load(recipe.read_text())["output_dir"])
    records = read_records(RunPaths(root).metrics)
    return {record.step: record.loss for record in records if isinstance(record, StepRecord)}


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    return output


def test_kill_and_resume_on_two_then_on_one_process(recipe: Path, two_ranks: Results) -> None:
    expected = two_ranks["twelve-steps"]["losses"]
    for step, arguments in ((4, ()), (8, ("cluster.processes_per_node=1",))):
        process = start(recipe, *arguments)
        wait_for_step(process, step)
        os.killpg(process.pid, signal.SIGKILL)
        for member in ranks_of(recipe):
            member.kill()
        finish(process)
    last = start(recipe, "cluster.processes_per_node=1", "engine.preset=zero3")
    printed = finish(last)
    assert last.returncode == 0, printed
    assert "resume: goes on after step" in printed
    got = losses(recipe)
    assert sorted(got) == list(range(1, 13))
    assert [got[step] for step in sorted(got)] == pytest.approx(expected, rel=1e-5)


def test_sigterm_saves_and_leaves_nobody_behind(recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, "train.max_steps=2000", "checkpoint.every=1000 steps")
    wait_for_step(process, 3)
    process.send_signal(signal.SIGTERM)
    printed = finish(process)
    assert "asked to stop: saved after step" in printed
    assert process.returncode == 0, printed
    folders = complete_checkpoints(RunPaths(tmp_path / "run"))
    assert len(folders) == 1
    deadline = time.monotonic() + 20
    while ranks_of(recipe) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ranks_of(recipe) == []


def test_divergence_rolls_back_then_exits_with_1_and_keeps_the_last_checkpoint(
    recipe: Path, tmp_path: Path
) -> None:
    """The checkpoint after step 1 has such weights that going on from it diverges again."""
    rollback = "train.rollback={attempts: 1}"
    process = start(recipe, "train.learning_rate=1e30", "checkpoint.every=1 steps", rollback)
    printed = finish(process)
    assert process.returncode == 1, printed
    assert "samples are in quarantine" in printed
    assert printed.count("launching: ") == 2
    assert "rollback 1: step 2 had loss = nan" in printed
    assert "not finite, so the run stops" in printed
    assert "attempts = 1 are used up (steps 2)" in printed
    assert "Traceback" not in printed
    first, second = complete_checkpoints(RunPaths(tmp_path / "run"))
    assert json.loads((first / "checkpoint.json").read_text())["num_updates"] == 1
    assert json.loads((second / "checkpoint.json").read_text())["num_updates"] == 1  # step 2: none


def test_bad_model_is_refused_before_the_launch(recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, f"model.name_or_path={tmp_path / 'nowhere'}")
    printed = finish(process)
    assert process.returncode == 2, printed
    assert "launching" not in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_a_trial_of_tune_is_measured_and_ends_without_a_checkpoint(
    recipe: Path, tmp_path: Path
) -> None:
    changes = ["train.max_steps=2000", "cluster.processes_per_node=1"]
    config = trial_recipe(load_recipe(recipe, changes), tmp_path / "trial")
    found = run_trial(config, tmp_path / "trial", num_steps=3, most_seconds=120)
    assert isinstance(found, Measured), found
    assert found.seconds > 0 and found.tokens_per_second > 0 and found.peak_bytes > 0
    assert complete_checkpoints(RunPaths(tmp_path / "trial")) == []
    assert ranks_of(tmp_path / "trial" / "trial.yaml") == []


def test_by_hand_with_the_deepspeed_command(recipe: Path, tmp_path: Path) -> None:
    command: list[Any] = [Path(sys.executable).with_name("deepspeed"), "--num_accelerators", "2"]
    command += ["--module", "ds_train", "train", str(recipe), "train.max_steps=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(losses(recipe)) == 2
