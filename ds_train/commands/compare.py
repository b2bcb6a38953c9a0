"""`ds-train compare`: variants of a recipe, several seeds each, and what differs beyond chance."""

from __future__ import annotations

import argparse
from pathlib import Path

from ds_train.commands.common import Commands, add_command, add_recipe_arguments
from ds_train.errors import ConfigError


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        run,
        "train variants of a recipe with several seeds each, and say what differs beyond chance",
        "ds-train compare my.yaml                       what its compare section names\n"
        "ds-train compare my.yaml compare.seeds=[0,1,2,3,4]\n"
        "ds-train compare --digits runs/digits          a curriculum on a task of our own making",
    )
    add_recipe_arguments(parser, "the YAML file with a compare section", may_lack=True)
    parser.add_argument(
        "--digits", metavar="FOLDER", help="write the bundled task there and compare on it"
    )


def run(args: argparse.Namespace) -> int:
    from ds_train.compare.arms import plan_comparison

    recipe, overrides = args.recipe, args.overrides
    if args.digits is not None:
        from ds_train.compare.digits import digits_recipe

        recipe, overrides = digits_recipe(Path(args.digits), [recipe, *overrides])
    elif recipe is None:
        raise ConfigError("ds-train compare: name a recipe, or --digits FOLDER; see --help.")
    comparison = plan_comparison(recipe, overrides)  # its faults are told before torch is loaded
    from ds_train.compare.run import run_comparison

    return run_comparison(comparison)
