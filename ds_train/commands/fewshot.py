"""`ds-train fewshot`: a recipe on k examples of each class."""

from __future__ import annotations

import argparse
from pathlib import Path

from ds_train.commands.common import Commands, add_command, add_recipe_arguments
from ds_train.errors import ConfigError


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "fewshot",
        run,
        "train a recipe, or the arms of its compare section, on k examples of each class",
        "ds-train fewshot my.yaml --k 4,16,64 --seeds 5\n"
        "ds-train fewshot my.yaml --k 16 --seeds 13,21,42,87,100\n"
        "ds-train fewshot --demo runs/demo              on a task of our own making, from nothing",
    )
    add_recipe_arguments(parser, may_lack=True)
    parser.add_argument(
        "--demo", metavar="FOLDER", help="write the bundled task there and show what is gained"
    )
    parser.add_argument(
        "--k", default="4,16,64", metavar="K,...", help="examples of each class (default 4,16,64)"
    )
    parser.add_argument(
        "--seeds", metavar="N", help="how many, or which: 13,21,42; those of the recipe if left out"
    )


def run(args: argparse.Namespace) -> int:
    if args.demo is not None:
        from ds_train.compare.kinds_demo import fewshot_demo

        return fewshot_demo(Path(args.demo), [args.recipe, *args.overrides])
    if args.recipe is None:
        raise ConfigError("ds-train fewshot: name a recipe, or --demo FOLDER; see --help.")
    from ds_train.compare.kshot import fewshot_command, parse_seeds, parse_shots

    return fewshot_command(
        args.recipe,
        args.overrides,
        shots=parse_shots(args.k),
        seeds=None if args.seeds is None else parse_seeds(args.seeds),
    )
