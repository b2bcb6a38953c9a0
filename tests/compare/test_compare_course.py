"""A comparison from first run to table, with faked runs: resume, failure, refusal, sweep."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from compare.conftest import Compare
from ds_train.compare import run
from ds_train.compare.arms import RunSpec
from ds_train.compare.children import LOG
from ds_train.config.compare import CompareConfig

FAKE_MEASURE = Path(__file__).with_name("fake_measure.py")

VALUES = {
    "plain/seed-0": 2.0,
    "plain/seed-1": 2.2,
    "high/seed-0": 1.5,
    "high/seed-1": 1.6,
}


def runs(text: str) -> list[str]:
    """Names of the runs in the progress lines, sorted."""
    return sorted(re.findall(r"^\[\d+/\d+\] (\S+)", text, re.MULTILINE))


def numbers() -> dict[str, Any]:
    """compare.json."""
    found: dict[str, Any] = json.loads(Path("out/compare.json").read_text())
    return found


def num_starts(name: str) -> int:
    """How often a fake run was started."""
    return len(Path(f"out/{name}/starts").read_text().splitlines())


def wait_for_sleeper() -> int:
    """Process id of the fake run that sleeps, once there is one."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in Path("out").rglob("asleep"):
            if text := path.read_text():
                return int(text)
        time.sleep(0.05)
    raise AssertionError("no run fell asleep")


def test_from_start_to_table(compare: Compare) -> None:
    code, out, err = compare(values=VALUES)
    assert (code, err) == (0, "")
    assert runs(out) == sorted(VALUES)
    assert "compare: 2 arms x 2 seeds = 4 runs, 0 of them finished" in out
    assert "[4/4]" in out
    table = Path("out/compare.md").read_text()
    assert table in out
    assert table.startswith(
        "**loss** (lower is better)\n\n"
        "| arm | seeds | updates | tokens | mean (sd) | difference to plain, seed by seed | "
        "its mean (sd) | seeds better | verdict |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| plain | 2 | 4 | 400 | 2.1000 (0.1414) |  |  |  | baseline |\n"
        "| high | 2 | 4 | 400 | 1.5500 (0.0707) | -0.5000 -0.6000 | -0.5500 (0.0707) | 2 of 2 "
        "| better |\n"
    )
    assert [arm["arm"] for arm in numbers()["arms"]] == ["plain", "high"]
    assert numbers()["arms"][1]["tokens_to_reach_baseline"] == {"0": 400, "1": 400}


def test_all_rows_are_measured_where_a_runs_own_evaluations_saw_some(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(spec: RunSpec, compare: CompareConfig) -> list[str]:
        return [sys.executable, str(FAKE_MEASURE), str(spec.paths.root)]

    monkeypatch.setattr(run, "measure_command", measure)
    code, out, err = compare("evaluate.max_rows=2", values=VALUES)
    assert (code, err) == (0, "")
    # what the run recorded, plus what fake_measure.py adds
    assert "| plain | 2 | 4 | 400 | 2.3500 (0.1414) |" in out
    code, out, err = compare("evaluate.max_rows=3")
    assert code == 2
    assert "was evaluated with evaluate.max_rows = 2, not 3" in err


def test_every_run_is_the_recipe_with_its_arm_and_seed(compare: Compare) -> None:
    compare(values=VALUES)
    recipe = yaml.safe_load(Path("out/high/seed-1/recipe.launch.yaml").read_text())
    assert recipe["adapter"]["r"] == 16
    assert recipe["train"]["seed"] == 1
    assert recipe["output_dir"] == "out/high/seed-1"
    assert recipe["report"]["run_name"] == "high-seed-1"
    assert recipe["compare"] is None
    recipe = yaml.safe_load(Path("out/plain/seed-0/recipe.launch.yaml").read_text())
    assert (recipe["adapter"]["r"], recipe["train"]["seed"]) == (8, 0)


def test_finished_runs_are_not_made_again(compare: Compare) -> None:
    first = compare(values=VALUES)[1]
    code, out, _ = compare(values={})  # a run that started now would fail
    assert code == 0
    assert "4 of them finished" in out
    assert runs(out) == []
    assert Path("out/compare.md").read_text() in first
    code, out, _ = compare(
        "compare.seeds=[0,1,2]", values={"plain/seed-2": 2.1, "high/seed-2": 1.7}
    )
    assert runs(out) == ["high/seed-2", "plain/seed-2"]
    assert "| high | 3 |" in out


def test_another_recipe_is_refused_with_the_difference(compare: Compare) -> None:
    compare(values=VALUES)
    code, _, err = compare("train.learning_rate=5e-3")
    assert code == 2
    assert err == (
        'error: output_dir = "out/plain/seed-0" holds a run of another recipe:\n'
        "  train.learning_rate: 0.0001 -> 0.005\n"
        "  Go on with the old values, or choose another output_dir.\n"
    )
    assert num_starts("plain/seed-0") == 1
    code, _, err = compare("evaluate.max_rows=2")
    assert (code, err) == (
        2,
        'error: output_dir = "out/plain/seed-0" was evaluated with evaluate.max_rows = None, not '
        "2; go on with that, or choose another output_dir.\n",
    )


def test_a_failed_run_is_named_and_the_others_go_on(compare: Compare) -> None:
    code, out, err = compare(values=VALUES | {"high/seed-0": "fail"})
    assert (code, err) == (1, "")
    assert runs(out) == sorted(VALUES)
    log = Path("out/high/seed-0") / LOG
    assert f"high/seed-0  FAILED: the disk is full (log: {log})" in out
    assert "error (rank 1): something else" in log.read_text()
    assert "Failed: high/seed-0: the disk is full" in Path("out/compare.md").read_text()
    assert "| high | 1 | 4 | 400 | 1.6000 | -0.6000 | -0.6000 | 1 of 1 | one seed |" in out
    # the next start tries it once more, and only it
    code, out, _ = compare(values={"high/seed-0": 1.5})
    assert (code, runs(out)) == (0, ["high/seed-0"])
    assert "Failed" not in Path("out/compare.md").read_text()


def test_nothing_but_failures(compare: Compare) -> None:
    code, _, err = compare(values=dict.fromkeys(VALUES, "fail"))
    assert (code, err) == (1, "error: all 4 runs failed; see their logs.\n")


def test_ctrl_c_stops_the_runs_which_save_and_go_on_later(compare: Compare) -> None:
    def interrupt() -> None:
        wait_for_sleeper()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, out, err = compare("compare.parallel=1", values=dict.fromkeys(VALUES, "sleep"))
    thread.join()
    assert (code, err) == (0, "")
    assert "stopping: the runs save and exit" in out
    assert out.endswith("stopped: 0 of 4 runs are finished; the same command goes on\n")
    assert Path("out/plain/seed-0/checkpoints/step-00000002").is_dir()
    assert not Path("out/compare.md").exists()
    code, out, _ = compare(values=VALUES)
    assert (code, runs(out)) == (0, sorted(VALUES))
    assert num_starts("plain/seed-0") == 2


def test_a_run_that_was_stopped_by_somebody_else_is_not_finished(compare: Compare) -> None:
    thread = threading.Thread(target=lambda: os.kill(wait_for_sleeper(), signal.SIGTERM))
    thread.start()
    code, out, _ = compare("compare.parallel=4", values=VALUES | {"high/seed-0": "sleep"})
    thread.join()
    assert code == 1
    assert "FAILED: it was stopped before its last step; the same command goes on" in out


def test_learning_rates_are_swept_for_each_arm(compare: Compare) -> None:
    values = {
        f"{arm}/seed-{seed}/lr-{rate:g}": value + 0.1 * seed
        for arm, by_rate in {
            "plain": {1e-4: 3.0, 1e-3: 2.0, 1e-2: 2.5},
            "high": {1e-4: 2.0, 1e-3: 2.4, 1e-2: 4.0},
        }.items()
        for rate, value in by_rate.items()
        for seed in (0, 1)
    }
    code, out, _ = compare("compare.learning_rates=[1e-2, 1e-4, 1e-3]", values=values)
    assert code == 0
    assert "2 arms x 2 seeds x 3 learning rates = 12 runs" in out
    assert "| plain | 0.001 | 2 | 4 | 400 | 2.0500 (0.0707) |" in out
    assert (
        "| high | 0.0001 | 2 | 4 | 400 | 2.0500 (0.0707) | +0.0000 +0.0000 | +0.0000 (0.0000) | "
        "0 of 2 | no difference |" in out
    )
    assert (
        "| arm | 0.0001 | 0.001 | 0.01 |\n"
        "| --- | --- | --- | --- |\n"
        "| plain | 3.0500 (0.0707) | **2.0500 (0.0707)** | 2.5500 (0.0707) |\n"
        "| high | **2.0500 (0.0707)** | 2.4500 (0.0707) | 4.0500 (0.0707) |\n" in out
    )
    assert "At the edge of the grid: high; a wider one may do better." in out


def test_equal_updates_take_the_other_arms_steps(compare: Compare) -> None:
    arms = "compare.arms={a: {}, b: {train.max_tokens: null, train.max_steps: 6}, "
    arms += "c: {equal_updates_to: b}}"
    names = [f"{arm}/seed-{seed}" for arm in "abc" for seed in (0, 1)]
    code, out, _ = compare(
        arms, "train.max_tokens=400", "train.max_steps=null", values=dict.fromkeys(names, 2.0)
    )
    assert code == 0
    assert "| a | 2 | 4 | 400 |" in out
    assert "| b | 2 | 6 | 600 |" in out
    assert "| c | 2 | 6 | 600 |" in out
    recipe = yaml.safe_load(Path("out/c/seed-1/recipe.launch.yaml").read_text())
    assert (recipe["train"]["max_steps"], recipe["train"]["max_tokens"]) == (6, None)
    assert "6 of them finished" in compare(arms, "train.max_tokens=400", "train.max_steps=null")[1]


def test_equal_updates_to_a_run_that_never_began(compare: Compare) -> None:
    """Nor is the length taken that an earlier start has left, perhaps of another recipe."""
    arms = "compare.arms={a: {equal_updates_to: b}, b: {}}"
    Path("out/b/seed-0").mkdir(parents=True)
    Path("out/b/seed-0/run.json").write_text('{"total_steps": 77}')
    code, out, _ = compare(
        arms, "compare.seeds=[0]", values={"a/seed-0": 1.0, "b/seed-0": "fail early"}
    )
    assert code == 1
    assert "b/seed-0  FAILED: no such model" in out
    assert "a/seed-0  FAILED: takes its number of steps from out/b/seed-0, which failed" in out
    code, out, _ = compare(arms, "compare.seeds=[0]", values={"a/seed-0": 1.0, "b/seed-0": 2.0})
    assert (code, runs(out)) == (0, ["a/seed-0", "b/seed-0"])
    assert "| a | 1 | 4 | 400 |" in out


def test_one_seed_is_allowed_and_said(compare: Compare) -> None:
    code, out, _ = compare("compare.seeds=[0]", values=VALUES)
    assert code == 0
    assert "compare: one seed shows no spread; give two or more in compare.seeds" in out
    assert "| plain | 1 | 4 | 400 | 2.0000 |" in out
    assert "One seed: there is no spread, and nothing can be concluded from a difference." in out


def test_picture(compare: Compare) -> None:
    pytest.importorskip("matplotlib")
    compare(values=VALUES)
    assert Path("out/compare.png").read_bytes().startswith(b"\x89PNG")
