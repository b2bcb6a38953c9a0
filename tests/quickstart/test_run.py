"""The quickstart's own steps: which folder it may empty, what the table says, its two recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_train.config.load import load_recipe
from ds_train.errors import ConfigError
from ds_train.paths import RunPaths
from ds_train.plan.batch import batch_arithmetic
from ds_train.plan.presets import ds_configs_dir
from ds_train.plan.rules import check_rules
from ds_train.quickstart.files import QuickstartFiles
from ds_train.quickstart.run import (
    claim_folder,
    lora_overrides,
    pretrain_overrides,
    summarize,
    table,
)
from ds_train.quickstart.score import Score
from ds_train.report.record import EvaluationRecord, Recorder, StepRecord


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError) as refusal:
        claim_folder(tmp_path)
    assert str(refusal.value) == (
        f"--output-dir = {tmp_path}: is not empty and no quickstart made it; name another folder."
    )
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_folder_of_an_earlier_quickstart_is_made_anew(tmp_path: Path) -> None:
    claim_folder(tmp_path / "new")
    (tmp_path / "new" / "lora").mkdir()
    claim_folder(tmp_path / "new")
    assert not (tmp_path / "new" / "lora").exists()


@pytest.mark.parametrize("num_processes", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["pretrain", "lora"])
def test_the_recipes_hold_for_any_number_of_gpus(
    name: str, num_processes: int, tmp_path: Path
) -> None:
    files = QuickstartFiles(tmp_path / "files")
    overrides = {
        "pretrain": pretrain_overrides(files, tmp_path / "run", num_processes),
        "lora": lora_overrides(files, tmp_path / "base", tmp_path / "run", num_processes),
    }[name]
    recipe = ds_configs_dir() / "recipes" / f"quickstart_{name}.yaml"
    config = load_recipe(recipe, overrides)
    assert check_rules(config, num_processes) == []
    plan = batch_arithmetic(config, num_processes)
    assert plan.accumulation_steps == 1
    assert plan.global_batch_size == config.train.global_batch_size
    assert config.data.train[0].path.startswith(str(tmp_path))  # type: ignore[union-attr]


def step(number: int, tokens: int, seconds: float, peak_memory_bytes: int) -> StepRecord:
    return StepRecord(
        step=number,
        loss=1.0,
        grad_norm=1.0,
        learning_rate=1e-3,
        tokens=tokens,
        supervised_tokens=tokens,
        total_tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        peak_memory_bytes=peak_memory_bytes,
    )


def evaluation(number: int, loss: float) -> EvaluationRecord:
    return EvaluationRecord(
        step=number,
        loss=loss,
        perplexity=1.0,
        token_accuracy=0.5,
        tokens=10,
        seconds=1.0,
        best=True,
    )


def test_the_table_tells_what_the_records_say(tmp_path: Path) -> None:
    recorder = Recorder(RunPaths(tmp_path).metrics)
    recorder.write(evaluation(0, 3.8))
    recorder.write(step(1, 100, 100.0, 1))  # warm-up, not counted
    recorder.write(step(2, 300, 0.5, 2**20))
    recorder.write(step(3, 500, 0.5, 2))
    recorder.write(evaluation(3, 0.07))
    summary = summarize(tmp_path)
    assert (summary.loss_before, summary.loss_after) == (3.8, 0.07)
    assert summary.tokens_per_second == 800.0
    assert summary.peak_memory_bytes == 2**20

    before, after = Score(0, 200, (("q", "r", "x"),)), Score(190, 200, (("q", "r", "r"),))
    text = table(summary, summary, before, after)
    assert "loss                               3.800                 0.070" in text
    assert "answers right                       0.0%                 95.0%" in text
    assert "tokens per second                    800                   800" in text
    assert "peak memory per process         1.00 MiB              1.00 MiB" in text
