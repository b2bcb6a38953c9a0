"""k-shot runs on rows in two templates: the same examples, prompts and losses at every layout."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from distributed import scenarios
from distributed.conftest import Results, launch
from ds_train.config.run import RunConfig
from ds_train.data.prepare import open_data
from ds_train.paths import RunPaths

pytestmark = pytest.mark.distributed

KINDS: dict[str, dict[str, Any]] = {
    "unpacked": {"data.packing": False},
    "packed": {"adapter.dropout": 0.0},
    "curriculum": scenarios.CURRICULUM,
    "refresh": {**scenarios.REFRESH, "train.max_steps": 4, "curriculum.refresh_at": [0.5]},
}


def write_rows(folder: Path) -> Path:
    """Sixty rows of text and one of three labels."""
    file = folder / "kshot.jsonl"
    if not file.exists():
        draw = random.Random(2)
        words = ["red", "green", "blue", "one", "two", "three", "stone", "river"]
        rows = [
            {"text": " ".join(draw.choices(words, k=draw.randint(1, 6))), "label": number % 3}
            for number in range(60)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def changes(folder: Path, kind: str, **more: Any) -> dict[str, Any]:
    """Four examples of each class, and four for dev, of one kind of run."""
    source = {
        "path": str(write_rows(folder)),
        "format": "classification",
        "template": ["{text}\nIt was", "Review: {text}\nSentiment:"],
    }
    return {
        **KINDS[kind],
        "data.train": [source],
        "fewshot.subset": {"k": 4, "seed": 3},
        "evaluate.every": "2 steps",
        **more,
    }


@pytest.fixture(scope="module")
def results(inputs: Path) -> Results:
    """Two ranks, then one rank that goes on where they were stopped."""
    two, one = [], []
    for kind in KINDS:
        for stage, micro in ((2, 2), (3, 1)):
            layout = {"engine.preset": f"zero{stage}", "train.per_device_train_batch_size": micro}
            every = changes(inputs, kind, **layout)
            two.append(scenarios.scenario(inputs, f"kshot-{kind}-z{stage}", every))
        every = changes(inputs, kind)
        moved = f"kshot-{kind}-moved"
        two.append(scenarios.scenario(inputs, moved, every, stop_after=3))
        one.append(scenarios.scenario(inputs, f"kshot-{kind}-one", every))
        one.append(scenarios.scenario(inputs, f"{moved}-on", every, run=moved))
    other = changes(inputs, "unpacked", **{"fewshot.subset": {"k": 5, "seed": 3}})
    one.append(scenarios.scenario(inputs, "kshot-other", other, run="kshot-unpacked-z2"))
    found = launch(inputs, "kshot-two", two, num_ranks=2)
    return found | launch(inputs, "kshot-one", one, num_ranks=1)


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_make_the_same_run(results: Results, kind: str) -> None:
    first = results[f"kshot-{kind}-z2"]
    assert len(first["losses"]) == 4 and len(first["evaluations"]) == 2
    for name in ("z3", "one", "moved-on"):
        other = results[f"kshot-{kind}-{name}"]
        assert other["losses"] == pytest.approx(first["losses"], rel=1e-5)
        assert other["evaluations"] == pytest.approx(first["evaluations"], rel=1e-5)
        assert other["rows"] == first["rows"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_on_is_in_the_list(results: Results, inputs: Path, kind: str) -> None:
    assert results  # the runs are there
    config = RunConfig.model_validate(scenarios.recipe(inputs, "x", changes(inputs, kind)))
    data, lists = open_data(config), set()
    for name in ("z2", "z3", "moved"):
        lists.add(RunPaths(inputs / "runs" / f"kshot-{kind}-{name}").subset.read_text())
    (text,) = lists
    facts = json.loads(text)
    assert data.subset is not None and facts["hash"] == data.subset.facts["hash"]
    listed = {row["row"] for one in facts["classes"] for row in one["train"]}
    assert len(listed) == 12 and listed == set((data.train.ordinals + 1).tolist())
    assert data.train.examples is not None
    templates = set()
    for step in results[f"kshot-{kind}-z2"]["rows"]:
        for row in step:
            templates |= set(data.train.examples.template[row].tolist())
    assert templates == {0, 1}


def test_another_k_is_refused_in_the_same_folder(results: Results) -> None:
    assert results["kshot-other"]["kind"] == "CheckpointError"
    assert "fewshot.subset.k: 4 -> 5" in results["kshot-other"]["error"]
