"""`ds-train data`: what the data becomes, row by row."""

from __future__ import annotations

import argparse
import os
import sys

from ds_train.commands.common import Commands, add_command, add_recipe_arguments
from ds_train.commands.values import count
from ds_train.errors import ConfigError


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "data",
        run,
        "show what the data becomes: the audit and rows with what is learned from",
        "ds-train data my.yaml\nds-train data my.yaml --step 1234      exactly what it trains on",
    )
    add_recipe_arguments(parser)
    parser.add_argument("--step", type=int, help="show the rows of this step (the first is 1)")
    parser.add_argument("--rows", type=count, default=3, help="rows to show (default 3)")
    parser.add_argument("--no-color", action="store_true", help="mark with brackets, not colours")


def run(args: argparse.Namespace) -> int:
    from ds_train.config.files import check_files
    from ds_train.config.load import load_recipe
    from ds_train.data.show import show_data

    config = load_recipe(args.recipe, args.overrides)
    if faults := check_files(config):
        raise ConfigError(faults)
    color = not args.no_color and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    show_data(config, step=args.step, rows=args.rows, color=color)
    return 0
