"""What the README shows is true: its recipe is valid, its files and commands are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ds_train.cli import build_parser
from ds_train.config.load import load_recipe
from ds_train.plan.batch import batch_arithmetic
from ds_train.plan.rules import check_rules

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")


def test_the_recipe_is_valid(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    (text,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    recipe.write_text(text)
    config = load_recipe(recipe)
    assert check_rules(config, 8) == []
    assert batch_arithmetic(config, 8).accumulation_steps == 1


def test_the_table_names_every_command() -> None:
    named = set(re.findall(r"\| `ds-train ([\w-]+)", README))
    (commands,) = (
        action.choices for action in build_parser()._subparsers._group_actions if action.choices
    )
    assert named == set(commands)


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_somewhere(path: str) -> None:
    assert (REPO / path).exists()
