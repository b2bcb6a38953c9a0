"""A run goes on only with the difficulties, curriculum and length that it began with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_train.config.load import config_from_dict, dump_recipe
from ds_train.config.run import RunConfig
from ds_train.errors import CheckpointError
from ds_train.paths import RunPaths
from ds_train.plan.resume import check_same_inputs, check_same_run


def _config(
    folder: Path, curriculum: Any = None, mixture: Any = None, steps: int = 10
) -> RunConfig:
    return config_from_dict(
        {
            "output_dir": str(folder),
            "model": {"name_or_path": "model"},
            "data": {"train": [{"path": "a.jsonl"}], "mixture": mixture},
            "train": {"max_steps": steps, "lr_scheduler_type": "constant"},
            "curriculum": curriculum,
        }
    )


def _began(config: RunConfig, **facts: Any) -> None:
    """A run folder with a checkpoint, made by the recipe."""
    paths = RunPaths(Path(config.output_dir))
    paths.checkpoint(5).mkdir(parents=True)
    paths.recipe.write_text(dump_recipe(config))
    common = {"global_batch_size": 8, "base_fingerprint": "base", "data_fingerprint": "data"}
    paths.run_facts.write_text(json.dumps(common | facts))


def test_other_difficulties_are_refused(tmp_path: Path) -> None:
    config = _config(tmp_path, {"metric": "length"})
    _began(config, difficulty_fingerprint="0123456789abcdef")
    check_same_inputs(config, "base", "data", "0123456789abcdef")
    with pytest.raises(CheckpointError) as caught:
        check_same_inputs(config, "base", "data", "fedcba9876543210")
    assert str(caught.value) == (
        f'output_dir = "{tmp_path}": the samples\' difficulty changed since this run began '
        "(fingerprint 0123456789ab, now fedcba987654); restore the old files, or choose another "
        "output_dir."
    )


def test_a_run_from_before_there_were_curricula_goes_on(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _began(config)
    check_same_run(config, 8)
    check_same_inputs(config, "base", "data", "")


STAGES = {"stages": [{"weights": {"a.jsonl": 1.0}}]}
CHANGES: list[tuple[Any, Any, str]] = [
    ((None, None), ({"metric": "length"}, None), "curriculum: None -> {'metric': 'length'"),
    (({}, None), ({"order": "uniform"}, None), 'curriculum.order: "easy_to_hard" -> "uniform"'),
    (({}, None), ({"metric": "rarity"}, None), 'curriculum.metric: "length" -> "rarity"'),
    (
        ({}, None),
        ({"pacing": {"end_at": "5 steps"}}, None),
        'curriculum.pacing.end_at: 0.5 -> "5 steps"',
    ),
    ((None, None), (None, STAGES), "data.mixture: None -> {'temperature': None"),
    ((None, STAGES), (None, {"temperature": 2}), "data.mixture.temperature: None -> 2.0"),
]


@pytest.mark.parametrize(("before", "after", "line"), CHANGES)
def test_another_curriculum_or_mixture_is_refused(
    before: Any, after: Any, line: str, tmp_path: Path
) -> None:
    _began(_config(tmp_path, *before))
    check_same_run(_config(tmp_path, *before), 8)
    with pytest.raises(CheckpointError) as caught:
        check_same_run(_config(tmp_path, *after), 8)
    assert f"  {line}" in str(caught.value)


@pytest.mark.parametrize(("curriculum", "mixture"), [({}, None), (None, STAGES)])
def test_a_longer_run_would_have_had_another_curriculum(
    curriculum: Any, mixture: Any, tmp_path: Path
) -> None:
    _began(_config(tmp_path, curriculum, mixture))
    with pytest.raises(CheckpointError, match=r"train\.max_steps: 10 -> 20"):
        check_same_run(_config(tmp_path, curriculum, mixture, steps=20), 8)


def test_without_one_a_constant_rate_may_go_on_for_longer(tmp_path: Path) -> None:
    _began(_config(tmp_path))
    check_same_run(_config(tmp_path, steps=20), 8)
