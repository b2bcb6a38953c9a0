"""One launch of two ranks and one launch of one rank serve all tests of this folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed import scenarios
from ds_train.launch.command import free_port
from ds_train.launch.process import remove_shared_memory

WORKER = Path(__file__).with_name("worker.py")
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the tiny model and its rows; runs go below it."""
    folder = tmp_path_factory.mktemp("distributed")
    scenarios.write_inputs(folder)
    return folder


@pytest.fixture(scope="session")
def two_ranks(inputs: Path) -> Results:
    """Results of every scenario of two ranks, by name."""
    return launch(inputs, "two", scenarios.two_rank_plan(inputs), num_ranks=2)


@pytest.fixture(scope="session")
def one_rank(inputs: Path, two_ranks: Results) -> Results:
    """Results of every scenario of one rank; some go on from runs of two ranks."""
    return launch(inputs, "one", scenarios.one_rank_plan(inputs), num_ranks=1)


def launch(
    folder: Path,
    name: str,
    plan: list[dict[str, Any]],
    num_ranks: int,
    timeout_seconds: float = 600,
    accelerator: str | None = "cpu",
    worker: Path = WORKER,
) -> Results:
    """Start the launcher with the plan and read what the worker wrote."""
    place = folder / name
    place.mkdir()
    (place / "plan.json").write_text(json.dumps(plan))
    port = free_port()
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators"]
    command += [str(num_ranks), "--master_port", str(port), str(worker), str(place / "plan.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if accelerator is not None:
        environment["DS_ACCELERATOR"] = accelerator
    with (place / "log").open("w") as log:
        subprocess.run(
            command, env=environment, stdout=log, stderr=log, timeout=timeout_seconds, check=False
        )
    remove_shared_memory(port)
    results = {
        item["name"]: json.loads((place / f"{item['name']}.json").read_text())
        for item in plan
        if (place / f"{item['name']}.json").exists()
    }
    defects = [result["error"] for result in results.values() if result.get("kind") == "defect"]
    if defects or len(results) < len(plan):
        pytest.fail(f"the worker ended early: {defects}\n{(place / 'log').read_text()[-3000:]}")
    return results
