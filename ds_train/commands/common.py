"""What commands have in common: how their parsers are made, and arguments that several have."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_OVERRIDES = (
    "settings laid over the recipe, e.g. train.learning_rate=1e-4 data.train.0.path=x.jsonl"
)


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    """The parser of a command; `run` gets what was parsed and returns the exit code."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="example:\n  " + example.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run_command=run)
    return parser


def add_recipe_arguments(
    parser: argparse.ArgumentParser,
    recipe: str = "the YAML file of the run",
    *,
    may_lack: bool = False,
) -> None:
    """The recipe, which some commands can do without, and settings that are laid over it."""
    parser.add_argument("recipe", nargs="?" if may_lack else None, help=recipe)
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Settings that are laid over the recipe."""
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help=_OVERRIDES
    )


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model of a target is meant, and where and how it computes."""
    parser.add_argument(
        "--checkpoint",
        default="chosen",
        help="of a run: latest (default; with early stopping best), best, or step-50",
    )
    parser.add_argument(
        "--base", action="store_true", help="of a run: the base model it began from"
    )
    parser.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], help="arithmetic")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; a GPU where there is one")


def is_rank() -> bool:
    """Whether the deepspeed launcher (or torchrun) has started this process as one of several."""
    return "RANK" in os.environ
