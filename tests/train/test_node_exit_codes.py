"""What `ds-train launch --target per-node --run` ends with, for schedulers that go by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_train.cli import main
from ds_train.errors import RunFailed
from ds_train.launch.failure import Failure
from ds_train.paths import RunPaths
from ds_train.report.endings import read_endings
from ds_train.report.record import StepRecord, to_json
from ds_train.train import one_node

AGAIN = 138
RUN = RunPaths(Path("run"))


class Launches:
    """Stands in for `start_training`: each comes to a step and fails."""

    def __init__(self, *ends: tuple[int, Any]) -> None:
        self._ends = list(ends)

    def __call__(self, *_: object, **__: object) -> int:
        step, kind = self._ends.pop(0)
        record = StepRecord(step, 1.0, 1.0, 0.1, 8, 8, 8 * step, 1.0, 8.0, 1)
        RUN.metrics.write_text(to_json(record) + "\n")
        failure = Failure(kind, "rank 1 is gone")
        raise RunFailed(str(failure), failure)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of the only node of a run."""
    monkeypatch.chdir(tmp_path)
    place = {"NODE_RANK": "0", "NNODES": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    recipe = {
        "output_dir": "run",
        "model": {"name_or_path": "org/model"},
        "data": {"train": [{"path": "rows.jsonl"}], "max_length": 64},
        "train": {"global_batch_size": 4, "max_steps": 9},
        "cluster": {"processes_per_node": 2},
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return ["launch", "recipe.yaml", "--target", "per-node", "--run"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [("killed", AGAIN), ("hang", AGAIN), ("connection", AGAIN), ("memory", 1), ("error", 1)],
)
def test_a_failure_that_starting_again_may_help_is_told(
    node: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any, kind: Any, code: int
) -> None:
    monkeypatch.setattr(one_node, "start_training", Launches((1, kind), (1, kind)))
    assert main([*node, "--tell-stop"]) == code
    assert capsys.readouterr().err == "error: rank 1 is gone.\n"
    assert main(node) == 1
    kinds = [line["kind"] for line in read_endings(RUN.failures)]
    assert kinds == [kind, kind]


def test_launches_that_come_no_further_end_a_run(
    node: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    reached = [4, 3, 5, 5, 2, 5]
    ends = [(step, "killed") for step in reached]
    monkeypatch.setattr(one_node, "start_training", Launches(*ends))
    codes = [main([*node, "--tell-stop"]) for _ in reached]
    assert codes == [AGAIN] * 5 + [1]
    assert "The last 3 launches came to no further step than one before" in capsys.readouterr().err


def test_other_nodes_leave_that_to_the_first(
    node: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setattr(one_node, "start_training", Launches(*[(1, "hang")] * 5))
    assert [main([*node, "--tell-stop"]) for _ in range(5)] == [AGAIN] * 5
    assert not RUN.failures.exists()
