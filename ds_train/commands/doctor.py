"""`ds-train doctor`: whether all hosts are fit for a run."""

from __future__ import annotations

import argparse

from ds_train.commands.common import Commands, add_command, add_recipe_arguments
from ds_train.commands.values import count


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "doctor",
        run,
        "check all hosts at once before a run: software, GPUs, files, clocks, network, all-reduce",
        "ds-train doctor my.yaml --json doctor.json\n"
        "ds-train doctor --hostfile launch/hostfile        without a recipe\n"
        "ds-train doctor                                   this machine alone",
    )
    add_recipe_arguments(parser, may_lack=True)
    _add_doctor_arguments(parser)


def _add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `ds-train doctor`."""
    parser.add_argument(
        "--hostfile", metavar="FILE", help="the hosts; the recipe's if left out, else this machine"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything that was found out there")
    parser.add_argument(
        "--need-disk",
        metavar="SIZE",
        help="free space of the output folder, as in 500GB; the checkpoints' if left out",
    )
    all_reduce = parser.add_mutually_exclusive_group()
    all_reduce.add_argument(
        "--no-all-reduce", action="store_true", help="start no processes; a few seconds in all"
    )
    all_reduce.add_argument(
        "--wait",
        type=count,
        default=40,
        metavar="SECONDS",
        help="for the all-reduce to start and end (default 40); more where importing torch is slow",
    )


def run(args: argparse.Namespace) -> int:
    from ds_train.doctor.command import doctor_command

    return doctor_command(
        args.recipe,
        args.overrides,
        hostfile=args.hostfile,
        json_file=args.json,
        need_disk=args.need_disk,
        all_reduce=not args.no_all_reduce,
        wait_seconds=args.wait,
    )
