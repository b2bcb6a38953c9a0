"""`ds-train score`: how hard each sample is, for a curriculum."""

from __future__ import annotations

import argparse

from ds_train.commands.common import Commands, add_command, add_recipe_arguments, is_rank


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "score",
        run,
        "measure how hard each training sample is, once, for a curriculum",
        "ds-train score my.yaml\n"
        "ds-train score my.yaml curriculum.metric=[length,rarity_mean]\n"
        "ds-train score my.yaml curriculum.metric=ifd curriculum.metric_model=./small",
    )
    add_recipe_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print numbers and examples as JSON")


def run(args: argparse.Namespace) -> int:
    from ds_train.score.command import score_as_rank, score_command

    if is_rank():
        return score_as_rank(args.recipe, args.overrides)
    return score_command(args.recipe, args.overrides, as_json=args.json)
