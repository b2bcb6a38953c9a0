"""`ds-train export`: a run's adapter, or one merged model folder."""

from __future__ import annotations

import argparse

from ds_train.commands.common import Commands, add_command


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "export",
        run,
        "write a run's adapter, or one merged model folder, from files alone",
        "ds-train export runs/first --merge --output my-model\n"
        "ds-train export runs/first --merge --average ema:0.2:6",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("--merge", action="store_true", help="one Hugging Face model folder")
    parser.add_argument(
        "--checkpoint",
        default="chosen",
        help="latest (default; with early stopping best), best or step-50",
    )
    parser.add_argument(
        "--average",
        metavar="last:N | ema:A[:N]",
        help="average the models of the last N checkpoints; A is the newest one's weight",
    )
    parser.add_argument(
        "--output", help="folder to write; RUN/merged, RUN/averaged or RUN/adapter if left out"
    )
    parser.add_argument(
        "--dtype", choices=["bf16", "fp16", "fp32"], help="of the weights; the base's if left out"
    )


def run(args: argparse.Namespace) -> int:
    from ds_train.checkpoint.export import export_command

    export_command(
        args.run,
        checkpoint=args.checkpoint,
        merge=args.merge,
        average=args.average,
        output=args.output,
        dtype=args.dtype,
    )
    return 0
