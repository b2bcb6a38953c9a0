"""`ds-train export-curriculum`: a recipe's curriculum for DeepSpeed's own sampler."""

from __future__ import annotations

import argparse

from ds_train.commands.common import Commands, add_command, add_recipe_arguments


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "export-curriculum",
        run,
        "write a recipe's curriculum for DeepSpeed's own sampler, for scripts of your own",
        "ds-train export-curriculum my.yaml --output my_curriculum",
    )
    add_recipe_arguments(parser)
    parser.add_argument("--output", required=True, help="folder to write, new or empty")


def run(args: argparse.Namespace) -> int:
    from ds_train.curriculum.deepspeed_files import export_curriculum
    from ds_train.plan.validate import validate

    plan = validate(args.recipe, args.overrides)
    export_curriculum(plan.config, args.output)
    return 0
