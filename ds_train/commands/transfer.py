"""`ds-train transfer`: what pretraining is worth."""

from __future__ import annotations

import argparse

from ds_train.commands.common import Commands, add_command, add_recipe_arguments


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "transfer",
        run,
        "measure what pretraining is worth: warm start against random weights, adapters, ladders",
        "ds-train transfer my.yaml                      what its transfer section names\n"
        "ds-train transfer my.yaml transfer.seeds=[0,1,2,3,4]",
    )
    add_recipe_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ds_train.transfer.design import plan_transfer

    design = plan_transfer(args.recipe, args.overrides)  # faults are told before torch is loaded
    from ds_train.transfer.report import transfer_command

    return transfer_command(*design)
