"""`ds-train data` of a recipe whose samples are scored again: what it says before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored_recipe import prepared, scored_recipe, silent

from ds_train.config.load import dump_recipe
from ds_train.config.run import RunConfig
from ds_train.curriculum.plan import build_step_plan
from ds_train.curriculum.refresh import named_scores, segments_of, store_refresh
from ds_train.curriculum.scores import ScoreBook, open_scores
from ds_train.data.show import show_data
from ds_train.errors import NotScoredYet
from ds_train.model.tiny import save_tiny
from ds_train.paths import RunPaths

AT_START = np.arange(60, dtype=np.float32)
LATER = AT_START[::-1].copy()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Ten steps of four samples, scored again after step 5; the first scores are stored."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    model = save_tiny(tmp_path / "model")
    recipe = scored_recipe(model, tmp_path / "data", "loss", packing=False).model_dump(mode="json")
    recipe["curriculum"] |= {"refresh_at": [0.5], "pacing": {"start": 0.2, "end_at": 1.0}}
    recipe["train"] |= {"global_batch_size": 4, "per_device_train_batch_size": 4}
    config = RunConfig.model_validate(recipe)
    book = ScoreBook(config, prepared(config))
    book.keep(book.specs[0], AT_START.astype(np.float64), 0.1, silent)
    return config


def _said(config: RunConfig, **settings: Any) -> dict[str, Any]:
    said: list[str] = []
    show_data(config, say=said.append, as_json=True, **settings)
    facts: dict[str, Any] = json.loads(said[-1])
    return facts


def _difficulties(config: RunConfig, step: int) -> dict[int, float]:
    """Sample -> difficulty of what a step shows."""
    ranks = _said(config, step=step)["step"]["ranks"]
    rows = [row for rank in ranks for micro_batch in rank for row in micro_batch]
    return {sample["sample"]: sample["difficulty"] for row in rows for sample in row}


def _run(config: RunConfig) -> None:
    """What a run has left behind when it has passed the boundary."""
    paths, data = RunPaths(Path(config.output_dir)), prepared(config)
    plan = build_step_plan(config, data, open_scores(config, data, silent), 4)
    segments = segments_of(plan)
    assert segments is not None
    paths.root.mkdir()
    paths.recipe.write_text(dump_recipe(config))
    facts = {"global_batch_size": 4, "base_fingerprint": "", "data_fingerprint": ""}
    paths.run_facts.write_text(json.dumps(facts))
    store_refresh(paths, segments, named_scores(LATER, "loss"), seconds=0.1)


def test_a_step_that_is_not_known_yet_is_said_and_shown_later(config: RunConfig) -> None:
    before = _difficulties(config, 5)
    assert all(before[sample] == AT_START[sample] for sample in before) and len(before) == 4
    with pytest.raises(NotScoredYet, match=r"^curriculum\.refresh_at: what is drawn after step 5 "):
        _difficulties(config, 6)
    _run(config)
    after = _difficulties(config, 6)
    assert all(after[sample] == LATER[sample] for sample in after) and len(after) == 4
    assert max(after.values()) < 60 * (0.2 + 0.8 * 0.5)
    assert _difficulties(config, 5) == before


def test_the_prediction_ends_where_knowledge_does(config: RunConfig) -> None:
    facts = _said(config)["curriculum"]
    assert (facts["known_steps"], facts["total_steps"]) == (5, 10)
    _run(config)
    facts = _said(config)["curriculum"]
    assert "known_steps" not in facts and len(facts["predicted"]["segments"]) == 2


@pytest.mark.parametrize("other", ["recipe", "scores"])
def test_what_another_run_has_measured_is_not_taken(config: RunConfig, other: str) -> None:
    _run(config)
    if other == "recipe":
        train = config.train.model_copy(update={"learning_rate": 1e-5})
        config = config.model_copy(update={"train": train})
    else:
        book = ScoreBook(config, prepared(config))
        book.keep(book.specs[0], AT_START.astype(np.float64) + 1, 0.1, silent)
    with pytest.raises(NotScoredYet):
        _difficulties(config, 6)
