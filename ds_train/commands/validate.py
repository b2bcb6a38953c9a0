"""`ds-train validate`: every fault of a recipe at once, and what the run would be."""

from __future__ import annotations

import argparse

from ds_train.commands.common import Commands, add_command, add_recipe_arguments


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "validate",
        run,
        "check a recipe and list every fault, without torch or a GPU",
        "ds-train validate my.yaml train.global_batch_size=64",
    )
    add_recipe_arguments(parser)
    parser.add_argument(
        "--ds-config", action="store_true", help="print the whole resolved DeepSpeed config"
    )
    parser.add_argument(
        "--resolved", action="store_true", help="print the whole recipe with its defaults"
    )


def run(args: argparse.Namespace) -> int:
    import json

    from ds_train.config.load import dump_recipe
    from ds_train.plan.validate import summary, validate
    from ds_train.train.late import likely_late_curriculum

    plan = validate(args.recipe, args.overrides)
    if args.ds_config:
        print(json.dumps(plan.ds_config, indent=2))
    if args.resolved:
        print(dump_recipe(plan.config), end="")
    if not (args.ds_config or args.resolved):
        late = likely_late_curriculum(plan.config)
        notes = [] if late is None else [late]
        print("\n".join([*summary(plan), *notes, f"{args.recipe} is valid"]))
    return 0
