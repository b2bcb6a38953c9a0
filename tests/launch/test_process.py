"""The real deepspeed launcher with ranks that need no torch: exit codes, Ctrl-C, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ds_train.config.load import config_from_dict
from ds_train.errors import RunFailed
from ds_train.launch.command import launcher_command, launcher_environment
from ds_train.launch.failure import Failure
from ds_train.launch.process import remove_shared_memory, run_launcher
from ds_train.launch.world import find_world

pytestmark = pytest.mark.distributed

DUMMY = Path(__file__).with_name("dummy_rank.py")
CALL = (
    "import sys; from ds_train.launch.process import run_launcher; "
    "sys.exit(run_launcher(sys.argv[1:]))"
)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """The launcher's command for two dummy ranks, as ds-train builds it, on the CPU."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = config_from_dict(
        {
            "output_dir": str(tmp_path),
            "model": {"name_or_path": "m"},
            "data": {"train": [{"path": "x"}]},
            "train": {"max_steps": 1},
            "cluster": {"processes_per_node": 2},
        }
    )
    world = find_world(config.cluster)
    for name, value in launcher_environment(world).items():
        monkeypatch.setenv(name, value)
    built = launcher_command(config, "recipe.yaml", world=world)
    head = built[: built.index("--module")]
    return lambda mode: [*head, str(DUMMY), str(tmp_path), mode]


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Callable[[list[str]], subprocess.Popen[bytes]]]:
    """Starts `run_launcher` in a process of its own and waits until both ranks are up."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", CALL, *command])
        started.append(process)
        assert wait_for(lambda: all((tmp_path / f"pid-{r}").exists() for r in (0, 1)), 60)
        time.sleep(0.3)  # the pid files are written before the ranks wait
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


def ranks_are_gone(folder: Path) -> bool:
    pids = [int(path.read_text()) for path in folder.glob("pid-*")]
    alive = [p for p in pids if psutil.pid_exists(p)]
    return all(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in alive)


def test_success_is_zero(command: Callable[[str], list[str]]) -> None:
    assert run_launcher(command("done")) == 0


def test_input_error_of_a_rank_is_2(command: Callable[[str], list[str]]) -> None:
    told: list[Failure] = []
    assert run_launcher(command("exit2"), on_refusal=told.append) == 2
    assert [str(one) for one in told] == [
        "a training process ended with exit code 2; its error stands above."
    ]


def test_failure_and_kill_of_a_rank_are_told(command: Callable[[str], list[str]]) -> None:
    with pytest.raises(RunFailed, match="ended with exit code 3; its error stands above"):
        run_launcher(command("exit3"))
    with pytest.raises(RunFailed, match=r"killed by SIGKILL \((the usual|not by this)"):
        run_launcher(command("killed"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_ranks_save(command, parent, tmp_path: Path, signum: int) -> None:
    process = parent(command("helper" if signum == signal.SIGINT else "wait"))
    leader = psutil.Process(process.pid).children()[0].pid
    process.send_signal(signum)
    assert process.wait(timeout=40) == 0
    assert (tmp_path / "saved-0").exists()
    assert (tmp_path / "saved-1").exists()
    assert ranks_are_gone(tmp_path)
    assert not [p for p in psutil.pids() if session_of(p) == leader], "a helper was left behind"


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def test_second_ctrl_c_kills(command, parent, tmp_path: Path) -> None:
    process = parent(command("stubborn"))
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert ranks_are_gone(tmp_path)


def test_killed_parent_leaves_no_ranks(command, parent, tmp_path: Path) -> None:
    process = parent(command("wait"))
    process.kill()
    assert wait_for(lambda: ranks_are_gone(tmp_path), 20)
    assert (tmp_path / "saved-0").exists()
    assert (tmp_path / "saved-1").exists()


def test_killed_launcher_is_no_success(command, parent, tmp_path: Path) -> None:
    """The launcher's own front end exits with 0 when the launcher below it is killed."""
    process = parent(command("wait"))
    runner = psutil.Process(process.pid).children()[0]
    runner.children()[0].kill()
    assert process.wait(timeout=60) == 1
    assert wait_for(lambda: ranks_are_gone(tmp_path), 20)


def test_shared_memory_of_our_port_is_freed() -> None:
    ours = Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_54321_0")
    other = Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_54322_0")
    try:
        ours.write_text("x")
        other.write_text("x")
        remove_shared_memory(54321)
        assert not ours.exists()
        assert other.exists()
    finally:
        ours.unlink(missing_ok=True)
        other.unlink(missing_ok=True)
