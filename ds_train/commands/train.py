"""`ds-train train`: typed by a user, it starts the deepspeed launcher, and in the ranks, which the
launcher starts with the same words, it trains.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ds_train.commands.common import Commands, add_command, add_recipe_arguments, is_rank


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "train",
        run,
        "check, tokenise and train through the deepspeed launcher; continue what was begun",
        "ds-train train my.yaml\n"
        "ds-train train my.yaml cluster.processes_per_node=8 -- --bind_cores_to_rank\n"
        "deepspeed --num_gpus 8 --module ds_train train my.yaml      the same by hand",
    )
    add_recipe_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the launcher's command and stop"
    )


def run(args: argparse.Namespace) -> int:
    if is_rank():
        return _train_as_rank(args)
    from ds_train.launch.command import show_command
    from ds_train.plan.launch import plan_launch

    launch = plan_launch(args.recipe, args.overrides, args.launcher_args)
    if args.dry_run:
        print(show_command(launch.command))
        return 0
    from ds_train.train.restart import train_to_the_end

    return train_to_the_end(launch, args.recipe, args.overrides, args.launcher_args)


def _train_as_rank(args: argparse.Namespace) -> int:
    from ds_train.launch.guard import stop_with_launcher

    stop_with_launcher()
    from ds_train.config.load import load_recipe

    config = load_recipe(args.recipe, args.overrides)
    from ds_train.launch.watchdog import watched

    with watched(Path(config.output_dir), config.cluster.hang_seconds):
        # torch: seconds in which a rank may be lost already
        from ds_train.train.loop import run as run_rank

        return run_rank(config)
