"""The launcher's command, the processes it will start, and its environment."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest

from ds_train.config.cluster import ClusterConfig
from ds_train.config.load import config_from_dict
from ds_train.errors import ConfigError
from ds_train.launch import world as world_module
from ds_train.launch.command import (
    free_port,
    launcher_command,
    launcher_environment,
    master_port,
)
from ds_train.launch.world import find_world, visible_gpus


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Pretend that this machine has so many GPUs."""

    def pretend(count: int, visible: str | None = None) -> None:
        monkeypatch.delenv("DS_ACCELERATOR", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        real = Path.glob

        def glob(self: Path, pattern: str):
            if str(self) == "/dev":
                names = [f"nvidia{i}" for i in range(count)] + ["nvidiactl", "nvidia-uvm"]
                return [Path("/dev") / name for name in names]
            return real(self, pattern)

        monkeypatch.setattr(world_module.Path, "glob", glob)

    return pretend


def command(args: Sequence[str] = (), overrides: Sequence[str] = (), **cluster) -> list[str]:
    config = config_from_dict(
        {
            "output_dir": "r",
            "model": {"name_or_path": "m"},
            "data": {"train": [{"path": "x"}]},
            "train": {"max_steps": 1},
            "cluster": cluster,
        }
    )
    built = launcher_command(config, "my.yaml", overrides, args)
    assert built[0].endswith("deepspeed")
    return built[1:]


def test_cpu(gpus) -> None:
    gpus(0)
    built = command(processes_per_node=2, master_port=29511, overrides=["a.b=c"])
    assert " ".join(built) == (
        "--num_accelerators 2 --master_port 29511 --log_level critical "
        "--module ds_train train my.yaml a.b=c"
    )


def test_gpus(gpus) -> None:
    gpus(4)
    assert command(master_port=29511)[:4] == ["--num_gpus", "4", "--master_port", "29511"]
    assert command(processes_per_node=2)[:2] == ["--num_gpus", "2"]


def test_cuda_visible_devices_is_kept(gpus) -> None:
    gpus(4, visible="2,3")
    assert command()[:2] == ["--include", "localhost:2,3"]
    assert command(processes_per_node=1)[:2] == ["--include", "localhost:2"]
    gpus(4, visible="")
    assert command()[:2] == ["--num_accelerators", "1"]
    gpus(4, visible="GPU-8f1c")
    with pytest.raises(ConfigError, match="understands indices only"):
        command()


def test_hostfile_and_launcher_arguments(gpus, tmp_path: Path) -> None:
    gpus(0)
    path = tmp_path / "hostfile"
    path.write_text("a slots=8\nb slots=8\n")
    where = ["--hostfile", str(path)]
    assert command(hostfile=str(path))[:4] == [*where, "--num_gpus", "8"]
    assert command(hostfile=str(path), processes_per_node=4)[:4] == [*where, "--num_gpus", "4"]
    filtered = command(["--include", "a:0,1"], hostfile=str(path))
    assert filtered[:2] == where
    assert "--num_gpus" not in filtered
    assert filtered[filtered.index("--include") + 1] == "a:0,1"


def test_what_the_cluster_section_says_of_hosts(gpus, tmp_path: Path) -> None:
    gpus(0)
    path = tmp_path / "hostfile"
    path.write_text("a slots=8\nb slots=8\n")
    built = command(hostfile=str(path), include="b:0,1", ssh_port=2222)
    assert built[2:6] == ["--include", "b:0,1", "--ssh_port", "2222"]
    assert command(hostfile=str(path), exclude="a")[2:4] == ["--exclude", "a"]
    # the arguments after -- win
    mixed = command(["--include", "a", "--ssh_port", "22"], hostfile=str(path), include="b")
    assert (mixed.count("--include"), mixed[mixed.index("--include") + 1]) == (1, "a")
    assert mixed.count("--ssh_port") == 1
    assert find_world(ClusterConfig(hostfile=str(path), exclude="a")).slots == {"b": list(range(8))}
    with pytest.raises(ConfigError, match="give --include or --exclude, not both"):
        command(hostfile=str(path), include="a", exclude="b")
    # without ssh there is no port
    assert "--ssh_port" not in command(processes_per_node=1, ssh_port=2222)


@pytest.mark.parametrize(
    ("args", "size"),
    [
        ([], 12),
        (["--num_nodes", "1"], 8),
        (["--num_gpus", "4"], 8),
        (["--include", "a:0,1@b"], 6),
        (["--exclude", "b"], 8),
        (["--bind_cores_to_rank"], 12),
    ],
)
def test_world_size_from_hostfile_and_arguments(tmp_path: Path, args, size: int) -> None:
    path = tmp_path / "hostfile"
    path.write_text("a slots=8\nb slots=4\n")
    world = find_world(ClusterConfig(hostfile=str(path)), args)
    assert world.world_size == size
    assert not world.is_local


def test_a_deepspeed_env_that_would_crash_the_launcher(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    Path("hostfile").write_text("a slots=8\n")
    Path(".deepspeed_env").write_text("# for NCCL\nNCCL_DEBUG=INFO\n\n")
    with pytest.raises(ConfigError) as caught:
        find_world(ClusterConfig(hostfile="hostfile"))
    assert caught.value.faults == [
        '.deepspeed_env: line 1 is "# for NCCL"; DeepSpeed wants KEY=VALUE in every line, also '
        "no empty line and no comment.",
        '.deepspeed_env: line 3 is ""; DeepSpeed wants KEY=VALUE in every line, also no empty '
        "line and no comment.",
    ]


def test_world_size_here(gpus) -> None:
    gpus(0)
    alone = find_world(ClusterConfig())
    assert (alone.world_size, alone.on_cpu, alone.is_local) == (1, True, True)
    assert alone.note == (
        "cluster.processes_per_node is left out and there is no GPU here: 1 assumed"
    )
    assert find_world(ClusterConfig(processes_per_node=3)).world_size == 3
    gpus(2)
    assert find_world(ClusterConfig()).world_size == 2
    with pytest.raises(ConfigError, match="this machine shows GPUs 0, 1 only; set it to 2"):
        find_world(ClusterConfig(processes_per_node=3))
    assert visible_gpus({"DS_ACCELERATOR": "cpu"}) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--module"], "is set by ds-train itself"),
        (["--num_gpus", "two"], "invalid int value"),
        (["train.seed=1"], "settings of the recipe go before"),
        (["--launcher", "slurm"], "use pdsh, or let Slurm or MPI start `ds-train launch"),
    ],
)
def test_bad_launcher_arguments(args, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_world(ClusterConfig(), args)


def test_ports(gpus) -> None:
    gpus(0)
    assert 1024 < master_port(command()) < 65536
    assert master_port(command(["--master_port=29777"], master_port=29511)) == 29777
    assert command(["--master_port", "29777"]).count("--master_port") == 1
    assert free_port() != 0


def test_environment(gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("ds_train.launch.command.num_cores", lambda: 16)
    environment = launcher_environment(find_world(ClusterConfig(processes_per_node=4)))
    assert environment["DS_ACCELERATOR"] == "cpu"
    assert environment["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    gpus(4)
    environment = launcher_environment(find_world(ClusterConfig()))
    assert environment["OMP_NUM_THREADS"] == "3"
    assert "DS_ACCELERATOR" not in environment


def test_the_launcher_knows_the_arguments_that_we_pass() -> None:
    """Against the installed launcher: a renamed option would fail only after the data is ready."""
    runner = pytest.importorskip("deepspeed.launcher.runner")
    args = runner.parse_args(command(processes_per_node=2, overrides=["train.seed=1"]))
    assert isinstance(args, argparse.Namespace)
    assert args.num_gpus == 2
    assert args.module is True
    assert args.user_script == "ds_train"
    assert args.user_args == ["train", "my.yaml", "train.seed=1"]
