"""Three ranks that are started by more than one launcher: one a node, and over ssh across hosts.

One host, a launcher for each of three nodes, with Slurm's variables: `--target per-node`, ended by
SIGUSR1. Then three hosts in network namespaces and the real deepspeed launcher over ssh, whose
losses must be those of the one host; skipped, with the reason, where hosts can't be made (no root,
ip, sshd).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from distributed import scenarios
from testbed import REPO, SCRIPT, Testbed, need_pdsh

from ds_train.checkpoint.folder import complete_checkpoints
from ds_train.launch.command import free_port
from ds_train.paths import RunPaths
from ds_train.report.record import StepRecord, read_records

pytestmark = pytest.mark.distributed
# PYTHONPATH is handed to the other hosts by DeepSpeed, the others by ds-train's file of variables
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
NODES = (0, 1, 2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    scenarios.write_inputs(folder)
    return folder


def write_recipe(
    inputs: Path, run: str, cluster: dict[str, Any], changes: dict[str, Any] | None = None
) -> Path:
    """LoRA under ZeRO-2, six rows a step on three ranks; step t does not depend on their number."""
    content = scenarios.recipe(
        inputs,
        run,
        {
            "train.global_batch_size": 6,
            "train.per_device_train_batch_size": 2,
            "train.lr_scheduler_type": "constant",
            **(changes or {}),
        },
    )
    path = inputs / f"{run}.yaml"
    path.write_text(yaml.safe_dump({**content, "cluster": cluster}))
    return path


def losses(inputs: Path, run: str) -> list[float]:
    metrics = RunPaths(inputs / "runs" / run).metrics
    records = read_records(metrics) if metrics.is_file() else []
    return [record.loss for record in records if isinstance(record, StepRecord)]


@dataclass(frozen=True)
class OneHost:
    """What came of three nodes on this machine."""

    losses: list[float]
    exit_codes: list[int | None]
    printed: list[str]
    port: int


@pytest.fixture(scope="module")
def one_host(inputs: Path) -> OneHost:
    """A launcher for each of three nodes, as srun would start them; then SIGUSR1 to all."""
    recipe = write_recipe(inputs, "one-host", {"processes_per_node": 1}, {"train.max_steps": 9000})
    port = free_port()
    nodes = [start_node(recipe, node, port) for node in NODES]
    try:
        deadline = time.monotonic() + 200
        while len(losses(inputs, "one-host")) <= scenarios.STEPS and time.monotonic() < deadline:
            if any(node.poll() is not None for node in nodes):
                break
            time.sleep(0.2)
        for node in nodes:
            # Slurm signals every process of a step
            for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children(True)]:
                process.send_signal(signal.SIGUSR1)
        printed = [node.communicate(timeout=60)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return OneHost(losses(inputs, "one-host"), [node.returncode for node in nodes], printed, port)


def start_node(recipe: Path, node: int, port: int) -> subprocess.Popen[str]:
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": str(node),
        "SLURM_NODEID": str(node),
        "SLURM_JOB_NUM_NODES": str(len(NODES)),
        "SLURM_JOB_NODELIST": "localhost,other,another",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-m", "ds_train", "launch", str(recipe)]
    return subprocess.Popen(
        [*command, "--target", "per-node", "--run"],
        env={**os.environ, **ENVIRONMENT, **slurm},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_sigusr1_to_every_process_saves_and_ends_with_0(inputs: Path, one_host: OneHost) -> None:
    """Of the launchers' processes none may die of it before the ranks have saved."""
    assert one_host.exit_codes == [0, 0, 0], one_host.printed
    said = f"node 1 of 3, said by Slurm; rank 0 is at localhost:{one_host.port}"
    assert said in one_host.printed[1]
    assert "asked to stop: saved after step" in one_host.printed[0]
    (folder,) = complete_checkpoints(RunPaths(inputs / "runs" / "one-host"))
    assert folder.name == f"step-{len(one_host.losses):08d}"


@pytest.mark.parametrize("preset", ["zero2", "zero3"])
def test_lora_over_ssh_on_three_hosts(
    testbed: Testbed, inputs: Path, one_host: OneHost, preset: str
) -> None:
    """The launcher reaches each host by ssh; every loss is that of three ranks on one host."""
    need_pdsh()
    changes = {
        "engine.preset": preset,
        "engine.overrides": scenarios.SHARD_ALL if preset == "zero3" else {},
    }
    cluster = {"hostfile": str(testbed.hostfile), "env": {"HELLO": "hosts"}}
    recipe = write_recipe(inputs, f"ssh-{preset}", cluster, changes)
    train = (sys.executable, "-m", "ds_train", "train", str(recipe))
    done = testbed.run("node-0", *train, cwd=REPO, environment=ENVIRONMENT)
    assert done.returncode == 0, done.stdout
    for node in NODES:
        assert f"node-{node}: " in done.stdout, "pdsh names the host of each line"
    found = losses(inputs, f"ssh-{preset}")
    assert len(found) == scenarios.STEPS
    assert found == pytest.approx(one_host.losses[: scenarios.STEPS], rel=2e-6)
    sent = (inputs / "runs" / f"ssh-{preset}" / "launch.env").read_text().splitlines()
    assert {"HELLO=hosts", "OMP_NUM_THREADS=1", "DS_ACCELERATOR=cpu"} <= set(sent)


def test_hosts_are_apart_and_reach_each_other(testbed: Testbed) -> None:
    names = testbed.check("node-0", "ssh", "node-2", "hostname; hostname -I; ls /dev/shm").split()
    assert names == ["node-2", "10.213.7.3"]
    assert "node-1" in testbed.check("node-2", "ssh", "node-1", "hostname")
    links = testbed.check("node-1", "ip", "-o", "link").splitlines()
    assert len(links) == 2, "a host has lo and eth0, and nothing of this machine"
    routes = testbed.check("node-1", "ip", "route")
    assert "default" not in routes, "nothing leaves the namespaces"


def test_bad_use_of_the_script_is_refused(testbed: Testbed) -> None:
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
