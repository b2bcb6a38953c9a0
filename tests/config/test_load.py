"""Recipes: the contract's example, overrides, and every fault at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_train.config.load import config_from_dict, dump_recipe, load_recipe
from ds_train.config.names import OTHER_TOOLS, all_keys
from ds_train.errors import ConfigError
from ds_train.units import Duration


def test_the_contracts_recipe_loads(load) -> None:
    config = load()
    assert config.train.learning_rate == 1e-3
    assert config.checkpoint.every == Duration(50, "steps")
    assert config.data.train[0].path == "train.jsonl"
    assert config.engine.preset == "zero2"
    assert config.cluster.processes_per_node == 2


def test_dumped_recipe_is_complete_and_loads_back_equal(load, small: str, tmp_path: Path) -> None:
    config = load(
        small,
        "train.warmup_steps=10M tokens",
        "evaluate.every=0.5 epochs",
        "data.train[0].labels={0: no, 1: 'yes'}",
        "engine.overrides.zero_optimization.reduce_bucket_size=1e6",
        "model.revision='1e-3'",
        "report.run_name='2024'",
    )
    text = dump_recipe(config)
    (tmp_path / "dumped.yaml").write_text(text)
    assert load_recipe(tmp_path / "dumped.yaml") == config
    assert "adam_epsilon: 1.0e-08" in text
    assert config.data.train[0].labels == {"0": "no", "1": "yes"}


def test_overrides(load, small: str) -> None:
    config = load(
        small,
        "train.learning_rate=1e-4",
        "data.packing=no",
        "data.train.0.path=other.jsonl",
        "data.train[1].path=second.jsonl",
        "checkpoint.every=",
        "adapter.target_modules=[q_proj, v_proj]",
        "model.name_or_path=a=b",
        "engine.overrides.zero_optimization.stage3_param_persistence_threshold=0",
    )
    assert config.train.learning_rate == 1e-4
    assert config.data.packing is False
    assert [source.path for source in config.data.train] == ["other.jsonl", "second.jsonl"]
    assert config.checkpoint.every is None
    assert config.adapter.target_modules == ["q_proj", "v_proj"]
    assert config.model.name_or_path == "a=b"
    zero = config.engine.overrides["zero_optimization"]
    assert zero == {"stage3_param_persistence_threshold": 0}


def test_empty_sections_have_their_defaults(load, small: str) -> None:
    config = load(small.replace("checkpoint: {every: 50 steps, keep: 2}", "checkpoint:\nreport:"))
    assert config.checkpoint.every is None
    assert config.report.log_every == 10


def test_all_faults_are_reported_at_once(faults) -> None:
    found = faults(
        "output_dir: x\nmodel: {name_or_path: 3, dtype: bf17}\n"
        "data: {train: [], max_length: 4x}\ntrain: {max_steps: 0, lr: 1}\n"
    )
    assert len(found) == 6


def test_rules_of_a_section_stand_beside_faults_of_its_fields(faults, small: str) -> None:
    found = faults(
        small.replace("fraction: 0.05", "fraction: 0.05, sources: [{path: x}]"),
        "model.dtype=bf17",
        "train.max_tokens=5",
    )
    assert len(found) == 3
    assert found[1] == (
        "data.validation: give fraction or sources, not both (given: fraction, sources) "
        "(recipe.yaml, line 6)."
    )
    assert found[2] == (
        "train: give exactly one of max_steps, num_train_epochs, max_tokens (given: max_steps, "
        "max_tokens) (recipe.yaml, line 9)."
    )


@pytest.mark.parametrize("key", OTHER_TOOLS)
def test_names_of_other_tools_are_answered(faults, small: str, key: str) -> None:
    """At the top level and inside a section."""
    for place in (key, f"train.{key}"):
        found = faults(small, f"{place}=1")
        if place in all_keys():
            continue  # `data` is a section here: its value is what is wrong
        assert ("here it is" in found[0]) or key == "data", found


def test_what_other_names_point_to_exists() -> None:
    """Answers that begin with a setting name one that is there."""
    keys = set(all_keys())
    for answer in OTHER_TOOLS.values():
        first = answer.split()[0].rstrip(":")
        assert first in keys or first == "nothing", answer


def test_config_from_dict() -> None:
    raw = {
        "output_dir": "r",
        "model": {"name_or_path": "m"},
        "data": {"train": [{"path": "x"}]},
        "train": {"max_steps": "2k"},
        "report": None,
    }
    assert config_from_dict(raw).train.max_steps == 2000
    assert raw["report"] is None, "the caller's dict is left alone"
    with pytest.raises(ConfigError, match=r"model\.name_or_path is missing"):
        config_from_dict({**raw, "model": {}})


def test_single_section_given_as_list_or_text(faults, small: str) -> None:
    found = faults(small.replace("engine: {preset: zero2}", "engine: zero2\nreport: [a]"))
    assert "must be a section" in found[0]
    assert "must be a section" in found[1]


def test_reading_a_recipe_writes_nothing(load, tmp_path: Path) -> None:
    load()
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
