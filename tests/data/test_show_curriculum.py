"""`ds-train data` under a curriculum: pools, exposure, and where each row of a step comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import recipe, write_jsonl

from ds_train.config.run import RunConfig
from ds_train.data.prepare import prepare_data
from ds_train.data.show import show_data

ROWS = [{"prompt": f"{i}:", "completion": " a" * (1 + i % 9), "level": i % 9} for i in range(60)]


def _config(model: Path, folder: Path, **changes: Any) -> RunConfig:
    sources = [
        {"path": write_jsonl(folder / "a.jsonl", ROWS[:40])},
        {"path": write_jsonl(folder / "b.jsonl", ROWS[40:])},
    ]
    config = recipe(
        model,
        folder,
        sources,
        max_length=64,
        packing=False,
        cluster={"processes_per_node": 2},
        train_section={"max_steps": 10, "global_batch_size": 4},
        **changes.pop("data", {}),
    )
    curriculum = {"metric": {"column": "level"}, "pacing": {"start": 0.2, "end_at": 1.0}}
    return RunConfig.model_validate(
        config.model_dump(mode="json") | {"curriculum": curriculum | changes}
    )


def _said(config: RunConfig, **settings: Any) -> list[str]:
    said: list[str] = []
    show_data(config, say=said.append, **settings)
    return said


def _samples(config: RunConfig, step: int) -> list[dict[str, Any]]:
    facts = json.loads(_said(config, step=step, as_json=True)[-1])["step"]
    return [
        sample
        for rank in facts["ranks"]
        for micro_batch in rank
        for row in micro_batch
        for sample in row
    ]


def test_each_row_of_a_step_says_its_difficulty_pool_and_source(
    stories260k: Path, tmp_path: Path
) -> None:
    config = _config(stories260k, tmp_path)
    for step, pool in ((1, 12), (10, 56)):  # 0.2 and 0.2 + 0.8 x 0.9 of 60 samples, rounded up
        samples = _samples(config, step)
        assert len(samples) == 4 and {sample["pool"] for sample in samples} == {pool}
        for sample in samples:
            offset = 0 if sample["source"] == "a.jsonl" else 40
            assert sample["difficulty"] == ROWS[offset + sample["source_row"]]["level"]
    assert max(sample["difficulty"] for sample in _samples(config, 1)) <= 1
    text = "\n".join(_said(config, step=1))
    assert "; difficulty 0; pool of 12 (0.200)" in text


def test_a_mixture_says_stage_and_the_sources_own_pool(stories260k: Path, tmp_path: Path) -> None:
    stages = [{"until": 0.5, "weights": {"a.jsonl": 1}}, {"weights": {"b.jsonl": 1}}]
    config = _config(stories260k, tmp_path, data={"mixture": {"stages": stages}})
    first, last = _samples(config, 1), _samples(config, 10)
    assert {(one["source"], one["stage"], one["pool"]) for one in first} == {("a.jsonl", 1, 8)}
    assert {(one["source"], one["stage"]) for one in last} == {("b.jsonl", 2)}
    text = "\n".join(_said(config))
    assert "mixture, stage 2, " in text and "b.jsonl 100.0% (asked 100.0%)" in text


def test_the_table_before_training(stories260k: Path, tmp_path: Path) -> None:
    config = _config(stories260k, tmp_path)
    said = _said(config, rows=1)
    start = next(i for i, line in enumerate(said) if line.startswith("curriculum: order"))
    assert "difficulty {column: level}" in said[start]
    table = [line.split() for line in said[start + 2 : start + 12]]
    assert [line[0] for line in table] == [str(step) for step in range(1, 11)]
    pools = [12, 17, 22, 27, 32, 36, 41, 46, 51, 56]
    assert [line[2] for line in table] == [str(pool) for pool in pools]
    facts = json.loads(_said(config, as_json=True)[-1])["curriculum"]
    data = prepare_data(config, say=lambda text: None)
    assert facts["num_samples"] == data.train.num_samples == 60
    assert 0 < facts["predicted"]["unseen_share"] < 1
    exposure = facts["predicted"]["exposure_by_decile"]
    assert np.mean(exposure) == pytest.approx(40 / 60)
    assert exposure[0] > exposure[-1]
