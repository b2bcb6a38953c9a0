"""`ds-train quickstart`: the main job on an embedded tiny model, without a download."""

from __future__ import annotations

import argparse
from pathlib import Path

from ds_train.commands.common import Commands, add_command
from ds_train.commands.values import count


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "quickstart",
        run,
        "the main job on an embedded tiny model: pretrain, LoRA, export, compare; no download",
        "ds-train quickstart",
    )
    parser.add_argument("--output-dir", default="runs/quickstart", help="default runs/quickstart")
    parser.add_argument("--num-processes", type=count, help="one per GPU, or 2 on the CPU")


def run(args: argparse.Namespace) -> int:
    from ds_train.quickstart.run import quickstart

    quickstart(Path(args.output_dir), num_processes=args.num_processes)
    return 0
