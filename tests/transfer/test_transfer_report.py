"""The design that follows from a recipe, and the table that follows from finished runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_train.cli import main
from ds_train.compare.arms import Comparison
from ds_train.compare.results import Point, RunResult
from ds_train.model.tiny import save_tiny
from ds_train.report import plot
from ds_train.transfer import report
from ds_train.transfer.before_after import Measuring
from ds_train.transfer.design import METRIC, Design, plan_transfer

RATES = (1e-3, 1e-2, 1e-1)
# at the best rate: bits per byte of random weights and of the warm start by size, before seeds
RANDOM = {1_000: 4.0, 10_000: 3.0, 100_000: 2.0}
WARM = {1_000: 3.5, 10_000: 2.2, 100_000: 1.5}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe whose files are there; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for name in ("target", "dev", "test", "stories", "more"):
        Path(f"{name}.jsonl").write_text(json.dumps({"text": f"some {name} text " * 9}) + "\n")
    source = {"format": "text"}
    return {
        "output_dir": "out",
        "model": {"name_or_path": str(save_tiny(tmp_path / "model")), "dtype": "fp32"},
        "adapter": {"method": "lora", "r": 2},
        "data": {
            "train": [{"path": "target.jsonl", "name": "news", **source}],
            "dev": {"sources": [{"path": "dev.jsonl", **source}]},
            "validation": {"sources": [{"path": "test.jsonl", **source}]},
            "max_length": 64,
            "cache_dir": "cache",
        },
        "train": {"max_steps": 8, "early_stopping": {"patience": 2}},
        "evaluate": {"every": 2},
        "cluster": {"processes_per_node": 1},
        "transfer": {
            "arms": ["warm", "random"],
            "sizes": ["1 kB", "10 kB"],
            "random_sizes": ["100 kB"],
            "seeds": [0, 1],
            "learning_rates": list(RATES),
        },
    }


def plan(recipe: dict[str, Any], **transfer: Any) -> tuple[Comparison, Design]:
    recipe = {**recipe, "transfer": {**recipe["transfer"], **transfer}}
    Path("my.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return plan_transfer("my.yaml", [])


def test_arms_and_sizes(recipe: dict[str, Any]) -> None:
    comparison, design = plan(recipe)
    names = ["warm-1kB", "random-1kB", "warm-10kB", "random-10kB", "random-100kB"]
    assert [cell.name for cell in design.cells] == list(comparison.plans) == names
    assert len(comparison.runs) == len(names) * 2 * len(RATES)
    assert comparison.compare.baseline_arm == "random-1kB"
    for name, one in comparison.plans.items():
        config = one.config
        assert config.model.init == ("random" if name.startswith("random") else "pretrained")
        assert config.adapter.method == "full" and config.evaluate.at_start
        assert config.data.limit is not None and config.data.limit.sources == ["news"]
    limit = comparison.plans["random-100kB"].config.data.limit
    assert limit is not None and limit.bytes == 100_000


def test_built_in_arms(recipe: dict[str, Any]) -> None:
    stories = {"path": "more.jsonl", "format": "text"}
    comparison, _ = plan(
        recipe,
        arms={
            "warm": None,
            "random": None,
            "lora": None,
            "ia3": None,
            "head": None,
            "frozen-1": None,
            "replay": None,
            "l2_sp": None,
            "slow": {"adapter.method": "full", "train.layer_lr_decay": 0.5},
        },
        replay={"sources": [stories], "share": 0.25},
        l2_sp=0.1,
        learning_rates={"warm": [1e-3, 3e-3]},
        random_sizes=[],
        sizes=["1 kB"],
    )
    configs = {name.removesuffix("-1kB"): one.config for name, one in comparison.plans.items()}
    assert configs["lora"].adapter.r == 2  # the recipe's own settings of its method
    assert configs["ia3"].adapter.method == "ia3"
    assert configs["head"].adapter.frozen_layers == "all"
    assert configs["frozen-1"].adapter.frozen_layers == 1
    assert configs["l2_sp"].train.l2_sp == 0.1 and configs["warm"].train.l2_sp is None
    assert configs["slow"].train.layer_lr_decay == 0.5
    replay = configs["replay"].data
    assert [one.shown_name for one in replay.train] == ["news", "replay-1"]
    assert replay.mixture is not None
    assert replay.mixture.stages[0].weights == {"news": 0.75, "replay-1": 0.25}
    assert replay.limit is not None and replay.limit.sources == ["news"]
    rates = [run.rate for run in comparison.runs if run.seed == 0]
    assert rates == [1e-3, 3e-3] + [None] * 8


def finished(comparison: Comparison, *, edge: bool = False) -> list[RunResult]:
    """Results by formula; the middle rate is the best one on dev, another one on test."""
    results = []
    for run in comparison.runs:
        arm, size = run.arm.split("-")
        value = (WARM if arm == "warm" else RANDOM)[int(size.removesuffix("kB")) * 1000]
        value += 0.1 * run.seed
        best = RATES[0] if edge else RATES[1]
        dev = value + (0.5 if run.rate == best else 1.0)
        test = value if run.rate == best else value - 0.01
        curve = tuple(Point(step * 100, dev + 1 - step / 4) for step in range(5))
        results.append(RunResult(run.arm, run.seed, run.rate, 4, 400, {METRIC: test}, curve, dev))
    return results


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model before training, and source text that trained models get worse at."""
    Path("out").mkdir()
    monkeypatch.setattr(Measuring, "zero_shot", lambda self, spec: 4.5)
    monkeypatch.setattr(Measuring, "source_before", lambda self, spec: 1.0)
    monkeypatch.setattr(Measuring, "source_after", lambda self, spec: 1.25 + spec.seed)


def test_table(recipe: dict[str, Any], measured: None) -> None:
    comparison, design = plan(recipe)
    report.write_transfer_report(design, comparison, finished(comparison), [], lambda text: None)
    text = Path("out/transfer.md").read_text()
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if "|" in line
    ]
    rows = {(line[0], line[1]): line[2:] for line in lines[2:7]}
    # rate 0.01 was chosen on dev, although the others are a little better on test
    assert rows["1.0 kB", "warm"][:4] == ["0.01", "2", "3.5500 (0.0707)", "-0.5000 (0.0000)"]
    assert rows["1.0 kB", "random"][:4] == ["0.01", "2", "4.0500 (0.0707)", ""]
    # random weights reach 3.55 half way (in log data) between 1 and 10 kB, and 2.25 of 3.05 .. 2.05
    assert rows["1.0 kB", "warm"][-2:] == ["3.2 kB", "2.2 kB"]
    assert rows["10.0 kB", "warm"][-2:] == ["63.1 kB", "53.1 kB"]
    assert rows["100.0 kB", "random"][-2:] == ["", ""]
    # on dev: random ends at 4.5 after 400 tokens, the warm start passes that after 200
    assert rows["1.0 kB", "warm"][4:6] == ["200", "2"]
    assert "Before training (zero-shot): 4.5000 bits per byte." in text
    assert "At the edge of the grid" not in text
    assert "warm: no fit, as fewer than three sizes" in text
    assert "source text" not in text.splitlines()[0]
    numbers = json.loads(Path("out/transfer.json").read_text())
    assert numbers["before"] == {"target": 4.5} and len(numbers["cells"]) == 5
    assert numbers["cells"][0]["values"] == {"0": 3.5, "1": 3.6}


def test_source_text_and_bounds(recipe: dict[str, Any], measured: None) -> None:
    sources = [{"path": "stories.jsonl", "format": "text"}]
    comparison, design = plan(recipe, source=sources, random_sizes=[], reach=0.5)
    results = finished(comparison)
    report.write_transfer_report(design, comparison, results, [], lambda text: None)
    text = Path("out/transfer.md").read_text()
    assert "Source text before training: 1.0000 bits per byte." in text
    assert "| 1.7500 (0.7071) | 3.2 kB | 2.2 kB |" in text
    assert "| > 10.0 kB | > 0.0 kB |" in text  # warm at 10 kB: random never gets there
    assert "| not reached |  |" in text and "The target that tokens are counted to is 0.5" in text


def test_a_best_rate_at_the_edge_is_said(recipe: dict[str, Any], measured: None) -> None:
    comparison, design = plan(recipe)
    results = finished(comparison, edge=True)
    report.write_transfer_report(design, comparison, results, [], lambda text: None)
    assert "At the edge of the grid: warm-1kB, random-1kB" in Path("out/transfer.md").read_text()


def test_picture(recipe: dict[str, Any], measured: None) -> None:
    pytest.importorskip("matplotlib")
    comparison, design = plan(recipe)
    report.write_transfer_report(design, comparison, finished(comparison), [], lambda text: None)
    assert Path("out/transfer.png").stat().st_size > 5_000
    assert plot.plot_ladder is report.plot_ladder


def test_rates_are_tried_on_the_first_seeds_only(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, measured: None
) -> None:
    grids = {"warm": [1e-3, 1e-2], "random": list(RATES), "random-10kB": [1e-2]}
    comparison, design = plan(
        recipe, rate_seeds=1, learning_rates=grids, seeds=[3, 1, 2], random_sizes=[]
    )
    asked: list[list[str]] = []

    def run(comparison: Comparison, say: Any, write: Any) -> int:
        asked.append([one.name for one in comparison.runs])
        write(comparison, finished(comparison), [], lambda text: None)
        return 0

    monkeypatch.setattr(report, "run_comparison", run)
    assert report.transfer_command(comparison, design) == 0
    tuning, everything = asked
    assert len(tuning) == 2 + 3 + 2 + 1 and all("/seed-3/" in name for name in tuning)
    others = [name for name in everything if name not in tuning]
    assert len(others) == 4 * 2 and all(name.endswith("/lr-0.01") for name in others)
    text = Path("out/transfer.md").read_text()
    assert "Learning rates were tried on the first seed; the others trained at the best" in text
    assert "| warm | 0.01 | 3 |" in text


def test_the_command_plans_checks_and_runs(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(recipe)
    asked: list[Comparison] = []

    def run(comparison: Comparison, say: Any, write: Any) -> int:
        asked.append(comparison)
        return 1

    monkeypatch.setattr(report, "run_comparison", run)
    assert main(["transfer", "my.yaml", "transfer.seeds=[7]"]) == 1
    assert {run.seed for run in asked[0].runs} == {7}
