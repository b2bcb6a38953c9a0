"""`ds-train plan`: what a recipe needs on a cluster, before the cluster is taken."""

from __future__ import annotations

import argparse

from ds_train.commands.cluster_options import CLUSTER_OPTIONS, add_cluster_arguments
from ds_train.commands.common import Commands, add_command, add_recipe_arguments


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "plan",
        run,
        "memory, communication, time and disk of a recipe on a cluster, and what to change to fit",
        "ds-train plan my.yaml --cluster 8xh100\n"
        "ds-train plan my.yaml --nodes 2 --gpus 8 --gpu-memory 80GiB --intra 900GB/s "
        "--inter 50GB/s\n"
        "ds-train plan my.yaml --cluster 8xh100 engine.preset=zero3 --json plan.json",
    )
    add_recipe_arguments(parser)
    add_cluster_arguments(parser)
    parser.add_argument(
        "--utilisation",
        type=_share,
        metavar="0.4",
        help="share of the peak that arithmetic reaches (default 0.4)",
    )
    parser.add_argument("--json", metavar="FILE", help="write every number to this file")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="train a few layers on one device of this machine, and compare with the plan",
    )


def _share(text: str) -> float:
    """A number above 0, at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'"{text}": must be above 0 and at most 1')
    return value


def run(args: argparse.Namespace) -> int:
    if args.measure:
        from ds_train.plan.measure import measure_command

        return measure_command(args.recipe, args.overrides, args.json)
    from ds_train.plan.command import plan_command

    return plan_command(
        args.recipe,
        args.overrides,
        cluster=args.cluster,
        options={name: getattr(args, name) for name in CLUSTER_OPTIONS},
        utilisation=args.utilisation,
        json_path=args.json,
    )
