"""`ds-train report`: what a run came to, and what befell it."""

from __future__ import annotations

import argparse

from ds_train.commands.common import Commands, add_command


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "report",
        run,
        "write what a run came to: its losses as a picture, and every interruption with its cause",
        "ds-train report runs/first        writes runs/first/report.md and loss.png",
    )
    parser.add_argument("run", help="the output_dir of a run, which may still go on")


def run(args: argparse.Namespace) -> int:
    from ds_train.report.run_report import report_command

    return report_command(args.run)
