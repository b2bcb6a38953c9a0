"""Several hosts in network namespaces, and the real deepspeed launcher over ssh across them.

Skipped, with the reason, where hosts can't be made: without root, ip or sshd.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed import scenarios
from testbed import REPO, SCRIPT, Testbed, need_pdsh

from ds_train.paths import RunPaths
from ds_train.report.record import StepRecord, read_records

pytestmark = pytest.mark.distributed
# PYTHONPATH is handed to the other hosts by DeepSpeed
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}


def test_hosts_are_apart_and_reach_each_other(testbed: Testbed) -> None:
    names = testbed.check("node-0", "ssh", "node-2", "hostname; hostname -I; ls /dev/shm").split()
    assert names == ["node-2", "10.213.7.3"]
    assert "node-1" in testbed.check("node-2", "ssh", "node-1", "hostname")
    links = testbed.check("node-1", "ip", "-o", "link").splitlines()
    assert len(links) == 2, "a host has lo and eth0, and nothing of this machine"
    routes = testbed.check("node-1", "ip", "route")
    assert "default" not in routes, "nothing leaves the namespaces"


def test_bad_use_is_refused(testbed: Testbed) -> None:
    for arguments, words in (
        (["up", "none"], "give 1 to 64 hosts"),
        (["exec", "node-0"], "name a host and a command"),
        (["nonsense"], "say up [NUMBER], status, exec HOST COMMAND, or down"),
    ):
        done = subprocess.run(
            [str(SCRIPT), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert words in done.stderr
    assert "there are node-0 node-1 node-2" in testbed.run("node-9", "true").stdout


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    scenarios.write_inputs(folder)
    return folder


def write_recipe(inputs: Path, run: str, preset: str, cluster: dict[str, Any]) -> Path:
    """LoRA, four steps of six rows on three ranks; every parameter is sharded under ZeRO-3."""
    content = scenarios.recipe(
        inputs,
        run,
        {
            "train.global_batch_size": 6,
            "train.per_device_train_batch_size": 2,
            "engine.preset": preset,
            "engine.overrides": scenarios.SHARD_ALL if preset == "zero3" else {},
        },
    )
    path = inputs / f"{run}.yaml"
    path.write_text(yaml.safe_dump({**content, "cluster": cluster}))
    return path


def losses(inputs: Path, run: str) -> list[float]:
    records = read_records(RunPaths(inputs / "runs" / run).metrics)
    return [record.loss for record in records if isinstance(record, StepRecord)]


@pytest.fixture(scope="module")
def one_host(inputs: Path) -> list[float]:
    """Losses of three ranks on this machine."""
    recipe = write_recipe(inputs, "one-host", "zero2", {"processes_per_node": 3})
    done = subprocess.run(
        [sys.executable, "-m", "ds_train", "train", str(recipe)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return losses(inputs, "one-host")


@pytest.mark.parametrize("preset", ["zero2", "zero3"])
def test_lora_over_ssh_on_three_hosts(
    testbed: Testbed, inputs: Path, one_host: list[float], preset: str
) -> None:
    """The launcher reaches each host by ssh; every loss is that of three ranks on one host."""
    need_pdsh()
    recipe = write_recipe(inputs, f"ssh-{preset}", preset, {"hostfile": str(testbed.hostfile)})
    train = (sys.executable, "-m", "ds_train", "train", str(recipe))
    done = testbed.run("node-0", *train, cwd=REPO, environment=ENVIRONMENT)
    assert done.returncode == 0, done.stdout
    for host in ("node-0", "node-1", "node-2"):
        assert f"{host}: " in done.stdout, "pdsh names the host of each line"
    found = losses(inputs, f"ssh-{preset}")
    assert len(found) == scenarios.STEPS
    assert found == pytest.approx(one_host, rel=2e-6)
