"""Restarts: when, how often, on which hosts; launches are only planned here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ds_train.cli import main
from ds_train.errors import RunFailed
from ds_train.launch.failure import Failure
from ds_train.launch.reach import find_lost, left_arguments
from ds_train.paths import RunPaths
from ds_train.plan.launch import Launch
from ds_train.report.record import StepRecord, to_json
from ds_train.train import restart

KILLED = Failure("killed", "rank 1 was killed by SIGKILL in step 6")
DIVERGED = Failure("diverged", "the training diverged in step 6 (rank 0; see above)")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two hosts of two slots, a global batch of eight rows, two restarts."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "hosts").write_text("node-0 slots=2\nnode-1 slots=2\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    content = {
        "output_dir": str(tmp_path / "run"),
        "model": {"name_or_path": "org/model"},
        "data": {"train": [{"path": str(tmp_path / "rows.jsonl")}]},
        "train": {"max_steps": 10, "global_batch_size": 8, "per_device_train_batch_size": 2},
        "cluster": {"hostfile": str(tmp_path / "hosts"), "restarts": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    (tmp_path / "run").mkdir()
    return path


class Launches:
    """Stands in for `start_training`: fails as told, having come to a step."""

    def __init__(self, paths: RunPaths, *ends: tuple[int, Failure | None]) -> None:
        self._paths, self._ends = paths, list(ends)
        self.commands: list[list[str]] = []
        self.rows: list[int] = []

    def __call__(self, launch: Launch, on_refusal: Callable[[Failure], object]) -> int:
        self.commands.append(launch.command)
        self.rows.append(launch.plan.batch.global_batch_size)
        reached, failure = self._ends.pop(0)
        records = [
            StepRecord(step, 1.0, 1.0, 0.1, 8, 8, 8 * step, 1.0, 8.0, 1)
            for step in range(1, reached + 1)
        ]
        self._paths.metrics.write_text("".join(to_json(one) + "\n" for one in records))
        if failure is None:
            return 0
        if failure.kind == "disk":  # a rank has said it, with exit code 2
            on_refusal(failure)
            return 2
        raise RunFailed(str(failure), failure)


Play = Callable[..., tuple[Launches, list[str]]]


@pytest.fixture
def play(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Train with launches that end so, and hosts that are lost after the first of them."""

    def run(
        *ends: tuple[int, Failure | None],
        lost: dict[str, str] | None = None,
        overrides: tuple[str, ...] = (),
    ) -> tuple[Launches, list[str]]:
        launches, said = Launches(RunPaths(tmp_path / "run"), *ends), []
        hosts = [lost or {}]
        monkeypatch.setattr(restart, "start_training", launches)
        monkeypatch.setattr(
            restart, "_lost_hosts", lambda launch, args: hosts.pop() if hosts else {}
        )
        monkeypatch.setattr(restart.time, "sleep", lambda seconds: said.append(f"{seconds:g} s"))
        try:
            code = restart.train_to_the_end(
                restart.plan_launch(recipe, overrides), recipe, overrides, say=said.append
            )
            said.append(f"exit code {code}")
        except RunFailed as error:
            said.append(f"error: {error}")
        return launches, said

    return run


def test_goes_on_until_no_restart_is_left(play: Play, tmp_path: Path) -> None:
    launches, said = play((5, KILLED), (7, KILLED), (9, KILLED))
    assert len(launches.commands) == 3
    assert said == [
        "failed: rank 1 was killed by SIGKILL in step 6.",
        "restart: from step 0 (reached: 5) on 4 processes x 2 rows x 1 micro-batch = 8 rows per "
        "step, in 5 s; 1 more restart after this one",
        "5 s",
        "failed: rank 1 was killed by SIGKILL in step 6.",
        "restart: from step 0 (reached: 7) on 4 processes x 2 rows x 1 micro-batch = 8 rows per "
        "step, in 15 s; 0 more restarts after this one",
        "15 s",
        "error: rank 1 was killed by SIGKILL in step 6. All restarts (cluster.restarts = 2) are "
        "used; the same command begins anew, as nothing was saved yet.",
    ]
    lines = [json.loads(line) for line in RunPaths(tmp_path / "run").restarts.open()]
    assert [line["reached_step"] for line in lines] == [5, 7]
    assert lines[0]["kind"] == "killed" and lines[1]["restarts_left"] == 0
    (end,) = [json.loads(line) for line in RunPaths(tmp_path / "run").failures.open()]
    assert (end["kind"], end["cause"], end["reached_step"]) == ("killed", f"{KILLED}", 9)


def test_what_ends_with_exit_code_2_is_written_down_too(play: Play, tmp_path: Path) -> None:
    full = Failure("disk", "rank 1 ended in saving step 3: No space left on device", "Make room.")
    launches, said = play((3, full))
    assert (len(launches.commands), said) == (1, ["exit code 2"])
    (end,) = [json.loads(line) for line in RunPaths(tmp_path / "run").failures.open()]
    assert (end["kind"], end["cause"], end["reached_step"]) == ("disk", f"{full}", 3)


def test_the_same_step_twice_is_enough(play: Play) -> None:
    launches, said = play((5, KILLED), (5, KILLED))
    assert len(launches.commands) == 2
    assert said[-1].endswith(
        "The same step fails again: this launch came to step 5 and the one before to step 5, so it "
        "is not started a further time."
    )


def test_what_a_restart_does_not_help_is_not_restarted(play: Play, tmp_path: Path) -> None:
    launches, said = play((5, DIVERGED))
    assert len(launches.commands) == 1
    assert not RunPaths(tmp_path / "run").restarts.exists()
    (end,) = [json.loads(line) for line in RunPaths(tmp_path / "run").failures.open()]
    assert (end["kind"], end["reached_step"]) == ("diverged", 5)
    assert said == ["error: the training diverged in step 6 (rank 0; see above)."]


def test_without_restarts_the_message_says_how_to_go_on(play: Play) -> None:
    launches, said = play((5, KILLED), overrides=("cluster.restarts=0",))
    assert len(launches.commands) == 1
    assert said[-1].endswith(
        "nothing was saved yet; with cluster.restarts: 3 it would do so by itself."
    )


def test_a_lost_host_is_left_out_and_the_rows_of_a_step_stay(play: Play) -> None:
    lost = {"node-1": "is not reached (No route to host)"}
    launches, said = play((5, KILLED), (9, None), lost=lost)
    assert "Lost: node-1 is not reached (No route to host)." in said[0]
    assert "on 2 processes x 2 rows x 2 micro-batches = 8 rows per step" in said[1]
    command = launches.commands[1]
    assert command[command.index("--include") + 1] == "node-0:0,1"
    assert "--force_multi" in command and "--num_gpus" not in command
    assert launches.rows == [8, 8] and said[-1] == "exit code 0"


@pytest.mark.parametrize("steps", ["1", "null"])
def test_rows_that_follow_from_the_processes_are_kept(play: Play, steps: str) -> None:
    overrides = ("train.global_batch_size=null", f"train.gradient_accumulation_steps={steps}")
    launches, _ = play((5, KILLED), (9, None), lost={"node-0": "gone"}, overrides=overrides)
    assert launches.rows == [8, 8]


def test_rows_that_do_not_divide_are_filled_up(play: Play) -> None:
    """Three rows a step on three processes, of which two are left."""
    rows = ("train.global_batch_size=3", "train.per_device_train_batch_size=1")
    lost, overrides = {"node-1": "is gone"}, (*rows, "cluster.exclude=node-1:1")
    launches, said = play((5, KILLED), (9, None), lost=lost, overrides=overrides)
    filled = "on 2 processes x 1 row x 2 micro-batches = 3 rows and 1 empty per step"
    assert filled in said[1]
    assert launches.rows == [3, 3]


def test_no_host_is_left(play: Play) -> None:
    _, said = play((5, KILLED), lost={"node-0": "is gone", "node-1": "is gone"})
    assert said[-1].endswith("Lost: node-0 is gone; node-1 is gone. No host is left to go on on.")


@pytest.mark.parametrize("target", ["slurm", "per-node", "kubernetes", "mpi"])
def test_where_something_else_starts_the_nodes_restarts_are_its_own(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    arguments = ["launch", str(recipe), "--target", target]
    if target != "mpi":
        arguments += ["--nodes", "2", "cluster.processes_per_node=2"]
    if target == "kubernetes":
        arguments += ["--image", "x"]
    assert main(arguments) == 2
    message = (
        "error: cluster.restarts = 2: here something else starts the nodes, and only that can "
        "start them again (launch/recovery.md says when it does); set it to 0. The run goes on "
        "from its last checkpoint all the same.\n"
    )
    assert capsys.readouterr().err == message
    hosts = str(tmp_path / "hosts")
    assert main(["train", str(recipe), "--", "--hostfile", hosts, "--no_ssh"]) == 2
    assert capsys.readouterr().err == message


def test_arguments_for_the_hosts_that_are_left() -> None:
    slots = {"a": [0, 1], "b": [2], "c": [0]}
    given = ["-H", "mine", "--exclude=a:1", "--num_gpus", "2", "--master_addr", "10.0.0.1", "-q"]
    found = left_arguments(slots, {"b": "gone"}, "hosts", given)
    assert found == [
        *("--hostfile", "hosts", "--include", "a:0,1@c:0", "--master_addr", "10.0.0.1", "-q")
    ]
    first = left_arguments(slots, {"a": "gone", "b": "gone"}, "hosts", given)
    assert first == ["--hostfile", "hosts", "--include", "c:0", "-q", "--force_multi"]


def test_all_hosts_are_asked() -> None:
    assert find_lost(["a", "b", "c"], lambda host: "no" if host == "b" else None) == {"b": "no"}


def test_pauses_grow() -> None:
    assert [restart.pause_seconds(n) for n in (1, 2, 3, 4, 5, 50)] == [5, 15, 45, 135, 300, 300]
