"""`ds-train build`: the kernels of the fused loss, ahead of their first use."""

from __future__ import annotations

import argparse

from ds_train.commands.common import Commands, add_command


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "build",
        run,
        "compile the kernels of the fused loss ahead of their first use",
        "ds-train build\n"
        "ds-train build --kind cuda --arch sm_80 sm_90      no GPU is needed for that",
    )
    parser.add_argument(
        "--kind", choices=["cpu", "cuda"], help="cpu, and cuda where there is a GPU, if left out"
    )
    parser.add_argument(
        "--arch",
        nargs="+",
        default=[],
        metavar="sm_90",
        help="of the GPUs that it is for; this machine's if left out",
    )


def run(args: argparse.Namespace) -> int:
    from ds_train.ops.build import build_command

    build_command(args.kind, args.arch)
    return 0
