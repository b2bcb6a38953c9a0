"""Curricula and mixtures over labelled examples: examples are drawn, each in one rendering."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curriculum_plans import config_of, scores_of
from small_store import store_of_lengths

from ds_train.config.run import RunConfig
from ds_train.curriculum.plan import build_step_plan
from ds_train.curriculum.report import Reporting
from ds_train.curriculum.scores import open_scores
from ds_train.data.divide import PreparedData
from ds_train.data.examples import EXAMPLE_DTYPES, Examples
from ds_train.data.order import StepPlan
from ds_train.data.prepare import prepare_data
from ds_train.errors import DataError

NUM, TEMPLATES, CHOICES = 90, 2, 3
VALUES = (np.arange(NUM) * 37 % NUM).astype(np.float32)
SOURCE = np.arange(NUM) // 60
"""60 examples of the first source, 30 of the second."""
LONGER = (1, 6)
"""Tokens that the second template adds, by source."""
CURRICULA: list[dict[str, Any]] = [
    {},
    {"order": "hard_to_easy", "then": "continue"},
    {"order": "random_pool"},
    {"cover": True},
    {"window": 16},
    {"order": "uniform"},
]


def prepared() -> PreparedData:
    """Examples of 2 templates x 3 answers; the second template's are longer."""
    example, template, choice = (
        one.ravel()
        for one in np.meshgrid(
            np.arange(NUM), np.arange(TEMPLATES), np.arange(CHOICES), indexing="ij"
        )
    )
    lengths = 4 + example % 3 + choice + template * np.array(LONGER)[SOURCE[example]]
    store = store_of_lengths(lengths.tolist(), SOURCE[example].tolist())
    store = replace(store, ordinals=example)
    arrays = {name: np.zeros(len(example), dtype) for name, dtype in EXAMPLE_DTYPES.items()}
    arrays |= {"templates": template, "choices": choice, "golds": choice == example % CHOICES}
    examples = Examples.of(arrays, store.sources, store.ordinals)
    store = replace(store, examples=examples)
    return PreparedData(store, None, {}, "data", ("s0", "s1"), (1.0, 1.0))


def plan(config: RunConfig, data: PreparedData, batch: int = 6) -> StepPlan:
    return build_step_plan(config, data, scores_of(VALUES), batch)


def config_with(curriculum: dict[str, Any] | None, **data: Any) -> RunConfig:
    steps = data.pop("steps", 60)
    return config_of(curriculum, data=data, train={"max_steps": steps}, num_sources=2)


@pytest.mark.parametrize("curriculum", CURRICULA, ids=str)
def test_the_examples_are_those_of_a_plan_without_renderings(curriculum: dict[str, Any]) -> None:
    data, config = prepared(), config_with(curriculum)
    rendered, single = plan(config, data), plan(config, data.of_examples)
    examples = data.train.examples
    assert examples is not None and data.of_examples.train.num_samples == NUM
    templates: Counter[int] = Counter()
    for step in range(60):
        samples = rendered.sample_ids(step)
        assert examples.example[samples].tolist() == single.sample_ids(step).tolist()
        assert examples.gold[samples].all()
        templates.update(examples.template[samples].tolist())
    assert abs(templates[0] - 180) < 45  # of 360, 4.7 standard deviations


def test_packed_rows_are_not_too_long() -> None:
    data, config = prepared(), config_with({}, packing=True, max_length=32)
    rendered = plan(config, data)
    for step in range(20):
        for row in rendered.rows(step):
            assert data.train.lengths[row].sum() <= 32


def test_a_mixture_counts_tokens_in_all_templates() -> None:
    mixture = {"stages": [{"weights": {"s0": 0.7, "s1": 0.3}}]}
    data = prepared()
    rendered = plan(config_with(None, mixture=mixture, steps=400), data)
    samples = np.concatenate([rendered.sample_ids(step) for step in range(400)])
    tokens = np.bincount(data.train.sources[samples], weights=data.train.lengths[samples])
    assert tokens[0] / tokens.sum() == pytest.approx(0.7, abs=0.01)


def test_the_report_counts_examples() -> None:
    data, config = prepared(), config_with({"cover": True}, steps=30)
    rendered = plan(config, data)
    report = Reporting(config, data, rendered, scores_of(VALUES))
    facts = report.predicted()
    assert facts["num_samples"] == NUM
    predicted = facts["predicted"]
    # 30 steps of 6 examples: each of the 90 exactly twice, whatever its templates' lengths
    assert predicted["passes"] == predicted["most_often"] == 2.0
    assert predicted["exposure_by_decile"] == [2.0] * 10 and predicted["unseen_share"] == 0
    assert {name: one["passes"] for name, one in predicted["sources"].items()} == {
        "s0": 2.0,
        "s1": 2.0,
    }
    exposure = report.new_exposure()
    exposure.add_planned(range(30))
    assert report.measured(exposure, steps_from_plan=0)["measured_equals_predicted"]
    assert facts["steps"][0]["mean_difficulty"] < facts["steps"][-1]["mean_difficulty"]


def real_recipe(model: Path, folder: Path, **sections: Any) -> RunConfig:
    rows = [{"text": "word " * (1 + i), "label": "ab"[i % 2]} for i in range(20)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {
        "path": str(folder / "a.jsonl"),
        "format": "classification",
        "template": ["{text}?", "{text} " + "and so on " * 9],
    }
    data = {"train": [source], "cache_dir": str(folder / "cache"), "packing": False}
    return RunConfig.model_validate(
        {
            "output_dir": str(folder / "run"),
            "model": {"name_or_path": str(model)},
            "data": {**data, "max_length": 256},
            "train": {"max_steps": 20},
            **sections,
        }
    )


def test_an_example_has_the_difficulty_of_its_first_template(
    stories260k: Path, tmp_path: Path
) -> None:
    config = real_recipe(
        stories260k,
        tmp_path,
        curriculum={"metric": "length"},
        evaluate={"rank_classification": True},
    )
    data = prepare_data(config, say=lambda text: None)
    examples = data.train.examples
    assert examples is not None and data.train.num_samples == 40
    scores = open_scores(config, data, say=lambda text: None)
    assert scores.values.tolist() == data.train.lengths[::2].tolist()
    assert np.all(np.diff(scores.values) > 0)


def test_deepspeeds_sampler_takes_no_renderings(stories260k: Path, tmp_path: Path) -> None:
    from ds_train.curriculum.deepspeed_files import export_curriculum

    config = real_recipe(stories260k, tmp_path, curriculum={"metric": "length"})
    with pytest.raises(DataError, match=r"several renderings .* one template"):
        export_curriculum(config, str(tmp_path / "out"), say=lambda text: None)
