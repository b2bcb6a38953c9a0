"""`ds-train launch`: what is rendered is valid for its reader, and says what the recipe says."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ds_train.cli import main
from ds_train.launch.environment import env_file_text

RECIPE = {
    "model": {"name_or_path": "org/model"},
    "train": {"global_batch_size": 32, "per_device_train_batch_size": 1, "max_steps": 20},
    "cluster": {"processes_per_node": 4, "env": {"NCCL_SOCKET_IFNAME": "eth0", "LEVEL": 2}},
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "hostfile").write_text("big slots=4\nsmall slots=4\nold slots=4\n")
    data = {"train": [{"path": "rows.jsonl"}], "max_length": 64}
    path = tmp_path / "my run.yaml"
    path.write_text(yaml.safe_dump({"output_dir": "run", "data": data, **RECIPE}))
    return str(path)


def render(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["launch", *arguments]) == 0
    return capsys.readouterr().out


HOSTS = ["cluster.hostfile=hostfile"]
CASES = [
    (["--target", "slurm", "--nodes", "2", "--time", "1-00:00:00"], []),
    (["--target", "per-node", "--nodes", "2"], []),
    (["--target", "ssh"], [*HOSTS, "cluster.include=small@old"]),
    (["--target", "mpi"], [*HOSTS, "cluster.exclude=old"]),
]


@pytest.mark.parametrize(("options", "overrides"), CASES, ids=[case[0][1] for case in CASES])
def test_scripts_are_clean(recipe: str, capsys, options, overrides, tmp_path: Path) -> None:
    text = render(capsys, recipe, *overrides, *options)
    script = tmp_path / "script.sh"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck; bash has parsed the script")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_slurm(recipe: str, capsys, tmp_path: Path) -> None:
    text = render(
        capsys, recipe, "--target", "slurm", "--nodes", "2", "--time", "2:00:00", "--partition",
        "gpus", "--option=--account=lab", "--stop-seconds", "120", "train.learning_rate=0.01",
    )  # fmt: skip
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert lines == [
        "#SBATCH --job-name=my-run",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --time=2:00:00",
        "#SBATCH --partition=gpus",
        f"#SBATCH --chdir={tmp_path}",
        "#SBATCH --output=slurm-%j.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:USR1@120",
        "#SBATCH --account=lab",
    ]
    assert text.index("#SBATCH") < text.index("set -e"), "sbatch stops reading at a command"
    assert "export LEVEL=2\nexport NCCL_SOCKET_IFNAME=eth0\n" in text
    assert "train.learning_rate=0.01 --target per-node --run &" in text
    assert f"launch '{tmp_path}/my run.yaml'" in text, "a name with a space stays one word"


def test_a_folder_with_a_space_is_one_word_to_sbatch(
    recipe: str, capsys, monkeypatch, tmp_path: Path
) -> None:
    (tmp_path / "my runs").mkdir()
    (tmp_path / "my runs" / "rows.jsonl").write_text('{"text": "x"}\n')
    monkeypatch.chdir(tmp_path / "my runs")
    text = render(capsys, recipe, "--target", "slurm", "--nodes", "2")
    assert f"#SBATCH --chdir='{tmp_path}/my runs'\n" in text


def test_a_node_with_fewer_cores_than_processes_is_refused(
    recipe: str, capsys, monkeypatch
) -> None:
    """As Slurm gives one core to a task that asks for GPUs only."""
    place = {"NODE_RANK": "0", "NNODES": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ds_train.launch.world.visible_gpus", lambda: [0, 1, 2, 3])
    monkeypatch.setattr("ds_train.train.launch.num_cores", lambda: 1)
    assert main(["launch", recipe, "--target", "per-node", "--run"]) == 2
    assert "= 4: this node lets us use 1 core, and every process" in capsys.readouterr().err


def test_a_cpu_job_asks_for_no_gpus(recipe: str, capsys) -> None:
    changes = ["cluster.env.DS_ACCELERATOR=cpu"]
    assert "--gpus" not in render(capsys, recipe, *changes, "--target", "slurm", "--nodes", "2")


def test_mpi_names_the_chosen_hosts(recipe: str, capsys) -> None:
    text = render(capsys, recipe, *HOSTS, "cluster.include=small@old", "--target", "mpi")
    assert "mpirun -np 2 --host small:1,old:1 --map-by ppr:1:node" in text
    assert "MASTER_ADDR=small " in text
    assert "-x LEVEL -x NCCL_SOCKET_IFNAME" in text
    # a node of mpirun does not look at the hostfile
    assert "cluster.processes_per_node=4 cluster.include=null --target per-node" in text


def test_output_is_a_program(recipe: str, capsys, tmp_path: Path) -> None:
    target = tmp_path / "jobs" / "my.sbatch"
    printed = render(capsys, recipe, "--target", "slurm", "--nodes", "2", "--output", str(target))
    assert printed.strip() == str(target)
    assert os.access(target, os.X_OK)


FAULTS = [
    (["--target", "slurm"], "--nodes: --target slurm must know on how many nodes; give it."),
    (
        ["--target", "ssh", "--nodes", "2"],
        "--nodes: is for --target slurm or per-node or kubernetes; leave it out.",
    ),
    (["--target", "mpi", "--time", "1:00"], "--time: is for --target slurm; leave it out."),
    (["--target", "ssh"], "cluster.hostfile: --target ssh must know the hosts; name a file"),
    (["--target", "slurm", "--nodes", "3"], "train.global_batch_size = 32 does not divide into 12"),
    (
        ["--target", "slurm", "--nodes", "2", "cluster.include=big"],
        "cluster.include: chooses hosts of a hostfile; here the scheduler chooses the nodes.",
    ),
    (
        ["--target", "slurm", "--nodes", "2", "cluster.processes_per_node=null"],
        "cluster.processes_per_node: is left out, and the nodes are not this machine; say how many",
    ),
    (
        ["--target", "slurm", "--nodes", "2", "--run"],
        "--run: there is no sbatch here; write the file with --output.",
    ),
    (
        ["--target", "slurm", "--nodes", "2", "cluster.env.A=$HOME"],
        "cluster.env = \"$HOME\": has a '$', which the remote shell would change; leave it out",
    ),
    (
        ["--target", "slurm", "--nodes", "2", "cluster.env.1A=x"],
        '"1A" is not the name of a variable; write it like NCCL_DEBUG',
    ),
]


@pytest.mark.parametrize(("arguments", "words"), FAULTS)
def test_messages(recipe: str, capsys, monkeypatch, arguments: list[str], words: str) -> None:
    if "--run" in arguments:
        monkeypatch.setenv("PATH", "/nowhere")
    assert main(["launch", recipe, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(recipe: str, capsys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = ["--target", "slurm", "--nodes", "2", "--output", "file/x"]
    assert main(["launch", recipe, *options]) == 2
    assert "--output = file/x: " in capsys.readouterr().err


def test_the_file_of_variables_for_other_hosts(tmp_path: Path, monkeypatch) -> None:
    """The recipe wins over the user's files, those over the environment; no token goes along."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".deepspeed_env").write_text("NCCL_DEBUG=WARN\nA=1 2\n")
    (tmp_path / ".deepspeed_env").write_text("A=3\n")
    here = {"NCCL_DEBUG": "INFO", "HF_HOME": "/hf", "HF_TOKEN": "x", "OMP_PLACES": '"'}
    assert env_file_text({"B": "recipe"}, here) == "NCCL_DEBUG=WARN\nHF_HOME=/hf\nA=3\nB=recipe\n"
    assert "NCCL_DEBUG=recipe\n" in env_file_text({"NCCL_DEBUG": "recipe"}, here)
