"""Bundled recipes: each is valid and says what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_train.config.load import load_recipe
from ds_train.config.recipes import bundled_recipes, copy_recipe, find_recipe
from ds_train.errors import ConfigError, InputError
from ds_train.plan.batch import batch_arithmetic
from ds_train.plan.ds_config import resolve_ds_config
from ds_train.plan.presets import ds_configs_dir
from ds_train.plan.rules import check_rules

FOLDER = ds_configs_dir() / "recipes"
RECIPES = bundled_recipes(FOLDER)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_is_valid(recipe) -> None:
    config = load_recipe(recipe.path)
    per_node = config.cluster.processes_per_node or 8
    faults = check_rules(config, per_node)
    # packages of the optional extras need not be installed here
    assert [fault for fault in faults if "is not installed" not in fault] == []
    assert resolve_ds_config(config, batch_arithmetic(config, per_node))
    assert len(recipe.description) > 20
    assert any(line.startswith("Command:") for line in recipe.comments)


def test_find_and_copy(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = find_recipe(FOLDER, "lora_sft_messages")
    assert find_recipe(FOLDER, "lora_sft_messages.yaml") == recipe
    target = copy_recipe(recipe, None)
    assert target.read_text() == recipe.path.read_text()
    with pytest.raises(InputError, match="is there already"):
        copy_recipe(recipe, str(target))
    with pytest.raises(InputError, match="can't be written"):
        copy_recipe(recipe, "no/folder/x.yaml")
    with pytest.raises(ConfigError, match=r"Did you mean lora_sft_messages\?"):
        find_recipe(FOLDER, "lora_sft_mesages")
