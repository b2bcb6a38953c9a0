"""`ds-train tune`: the quickest settings of a recipe, by short real runs."""

from __future__ import annotations

import argparse

from ds_train.commands.cluster_options import CLUSTER_OPTIONS, add_cluster_arguments
from ds_train.commands.common import Commands, add_command, add_recipe_arguments
from ds_train.commands.values import count


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "tune",
        run,
        "find the quickest stage, micro-batch, checkpointing and buckets by short real runs",
        "ds-train tune my.yaml                       writes my.tuned.yaml\n"
        "ds-train tune my.yaml --in-place --trials 20\n"
        "ds-train tune my.yaml --cluster 8xh100 --json tune.json",
    )
    add_recipe_arguments(parser)
    _add_tune_arguments(parser)
    add_cluster_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="write every number to this file")


def _add_tune_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `ds-train tune`."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--output", metavar="FILE", help="the new recipe; NAME.tuned.yaml if left out"
    )
    where.add_argument("--in-place", action="store_true", help="change the recipe itself")
    parser.add_argument(
        "--trials", type=count, default=12, metavar="N", help="settings to try (default 12)"
    )
    parser.add_argument(
        "--steps", type=count, default=6, metavar="N", help="steps that count of each (default 6)"
    )
    parser.add_argument(
        "--rounds",
        type=count,
        default=3,
        metavar="N",
        help="of the recipe against the best, in turns, at the end (default 3)",
    )
    parser.add_argument(
        "--minutes", type=count, default=10, metavar="N", help="a trial may take (default 10)"
    )


def run(args: argparse.Namespace) -> int:
    from ds_train.tune.command import TuneOptions, tune_command

    return tune_command(
        args.recipe,
        args.overrides,
        cluster=args.cluster,
        cluster_options={name: getattr(args, name) for name in CLUSTER_OPTIONS},
        options=TuneOptions(
            num_trials=args.trials,
            num_steps=args.steps,
            num_rounds=args.rounds,
            trial_seconds=60.0 * args.minutes,
            output=args.output,
            in_place=args.in_place,
            json_path=args.json,
        ),
    )
