"""A rank that is killed, a rank that hangs: `ds-train train` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from distributed import scenarios
from distributed.conftest import Results
from distributed.test_command import finish, losses, ranks_of, start, wait_for_step
from ds_train.launch.command import free_port
from ds_train.paths import RunPaths

pytestmark = pytest.mark.distributed


@pytest.fixture
def recipe(inputs: Path, tmp_path: Path) -> Path:
    """Twelve steps on two processes, saved every two, that hang after four seconds."""
    content = scenarios.recipe(inputs, "unused", scenarios.TWELVE_STEPS)
    content["output_dir"] = str(tmp_path / "run")
    content["checkpoint"] = {"every": "2 steps", "keep": 2}
    content["cluster"] = {"processes_per_node": 2, "restarts": 1, "hang_seconds": 4}
    content["report"] = {"progress": "plain", "log_every": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def rank_one(process: subprocess.Popen[str], recipe: Path) -> psutil.Process:
    (rank,) = [one for one in ranks_of(recipe) if one.environ().get("RANK") == "1"]
    assert psutil.Process(process.pid) in rank.parents()
    return rank


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(
    recipe: Path, tmp_path: Path, two_ranks: Results
) -> None:
    process = start(recipe)
    wait_for_step(process, 5)
    rank_one(process, recipe).kill()
    printed = finish(process)
    assert process.returncode == 0, printed
    assert "failed: rank 1 was killed by SIGKILL in " in printed
    assert "restart: from step 4 (reached: 5) on 2 processes" in printed
    assert "resume: goes on after step 4 of" in printed
    assert "Traceback" not in printed
    expected = two_ranks["twelve-steps"]["losses"]
    got = losses(recipe)
    assert [got[step] for step in range(1, 13)] == pytest.approx(expected, rel=1e-6)
    (line,) = map(json.loads, RunPaths(tmp_path / "run").restarts.open())
    assert (line["kind"], line["from_step"], line["reached_step"]) == ("killed", 4, 5)
    assert not RunPaths(tmp_path / "run").ranks.exists()


def test_a_rank_that_stands_still_is_named(recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, "cluster.restarts=0")
    wait_for_step(process, 5)
    rank_one(process, recipe).send_signal(signal.SIGSTOP)
    printed = finish(process)
    assert process.returncode == 1, printed
    assert "error: the run hung: no progress for 4 s. rank 1 wrote no stacks" in printed
    assert "The same command goes on after step 4; with cluster.restarts: 3" in printed
    assert ranks_of(recipe) == []
    stacks = (RunPaths(tmp_path / "run").hang / "1" / "rank-00000.txt").read_text()
    assert ": step 6, mark " in stacks and " in train_step" in stacks


@pytest.mark.parametrize(
    ("signum", "codes"),
    [(signal.SIGTERM, [143, 143]), (signal.SIGKILL, [138, 138])],
    ids=["evicted", "killed"],
)
def test_what_befalls_one_node_is_told_by_all(
    recipe: Path, signum: signal.Signals, codes: list[int]
) -> None:
    """A pod that ends with 0 would be a part of the run that is done."""
    port = free_port()
    nodes = [start_node(recipe, node, port) for node in (0, 1)]
    wait_for_step(nodes[0], 5)
    if signum == signal.SIGTERM:
        nodes[1].terminate()
    else:
        rank_one(nodes[1], recipe).kill()
    printed = [finish(node) for node in nodes]
    assert [node.returncode for node in nodes] == codes, printed
    saved = "asked to stop: saved after step" in printed[0]
    assert saved == (signum == signal.SIGTERM)


def start_node(recipe: Path, node: int, port: int) -> subprocess.Popen[str]:
    place = {"NODE_RANK": str(node), "NNODES": "2", "MASTER_ADDR": "127.0.0.1"}
    options = ["--target", "per-node", "--run", "--tell-stop"]
    overrides = ["cluster.processes_per_node=1", "cluster.restarts=0"]
    return subprocess.Popen(
        [sys.executable, "-m", "ds_train", "launch", str(recipe), *overrides, *options],
        env={**os.environ, **place, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
