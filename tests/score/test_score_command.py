"""`ds-train score` as a user types it: what it prints; several processes change nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scored_recipe import ROWS, prepared, scored_recipe

from ds_train.cli import main
from ds_train.config.load import dump_recipe, load_recipe
from ds_train.curriculum.scores import open_scores
from ds_train.model.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def here(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    Path("my.yaml").write_text(dump_recipe(scored_recipe(model, tmp_path, "length")))
    return tmp_path


def test_the_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "my.yaml", "curriculum.metric=[length,{column: steps}]"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split()[:4] == ["metric", "min", "10", "%"]
    assert re.fullmatch(r"length +10 +10 +.* 13 +60 +\d\.\d\d +(-|[\d.,]+)", lines[1])
    assert lines[2].split()[:3] == ["{column:", "steps}", "0"]
    assert "difficulty: length of 60 samples in" in captured.err
    shown = captured.out.split("\n\n")[1]
    assert re.match(r"length: .*/cache/.*/difficulty/[0-9a-f]{32}\.f32\n", shown)
    assert "  easiest (10; train.jsonl, row 1, 10 tokens)\n    0 + 0? 0\n" in shown
    assert "  hardest (13; train.jsonl, row 36, 13 tokens)\n    5 + 5? 10!!" in shown


def test_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "my.yaml", "--json", "curriculum.metric={column: steps}"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    steps = np.sort([row["steps"] for row in ROWS]).astype(float)
    assert (facts["min"], facts["max"]) == (steps[0], steps[-1])
    assert facts["deciles"] == [steps[round(60 * tenth / 10) - 1] for tenth in range(1, 10)]
    assert facts["ties"] == 60 and facts["num_samples"] == 60
    assert facts["easiest"]["text"] == ROWS[0]["prompt"] + ROWS[0]["completion"]
    assert facts["hardest"]["difficulty"] == 6
    assert len(np.fromfile(facts["path"], "<f4")) == 60


def test_ties_are_samples_that_share_their_value(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**ROWS[i], "steps": value} for i, value in enumerate([1, 2, 2, 3, 3, 3, 4])]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["score", "my.yaml", "--json", "curriculum.metric={column: steps}"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["ties"] == 5


def test_a_second_call_computes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["score", "my.yaml", "curriculum.metric=loss"]
    assert main(typed) == 0
    first = capsys.readouterr()
    assert main(typed) == 0
    second = capsys.readouterr()
    assert first.out == second.out
    assert "difficulty: loss of 60 samples" in first.err
    assert second.err.startswith("data: tokenised before") and second.err.count("\n") == 1


@pytest.mark.distributed
def test_two_processes_equal_one(here: Path, model: Path) -> None:
    typed = ["score", "my.yaml", "--json", "curriculum.metric=[ifd,perplexity]"]
    typed += [f"curriculum.metric_model={model}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    values = {}
    for num_processes in (1, 2):
        own = [
            f"cluster.processes_per_node={num_processes}",
            f"data.cache_dir=cache{num_processes}",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "ds_train", *typed, *own],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        ifd, perplexity = json.loads(done.stdout)
        values[num_processes] = [np.fromfile(one["path"], "<f4") for one in (ifd, perplexity)]
        assert ("scoring in 2 processes" in done.stderr) == (num_processes == 2)
        assert done.stderr.count("difficulty: ifd of 60 samples") == 1
        config = load_recipe("my.yaml", [*typed[3:], *own])
        assert open_scores(config, prepared(config)).metric == "[ifd, perplexity]"
    for one, two in zip(values[1], values[2], strict=True):
        assert len(one) == 60 and one.tolist() == two.tolist()


def test_training_makes_what_is_cheap(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the launch, so that ranks only open it."""
    monkeypatch.setattr("ds_train.train.start.run_launcher", lambda *a, **k: 0)
    assert main(["train", "my.yaml", "curriculum.metric=rarity"]) == 0
    out = capsys.readouterr().out
    assert out.index("difficulty: rarity of 60 samples") < out.index("launching")
