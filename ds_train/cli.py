"""The command line: reads what was typed, runs that command, and says what was wrong with it.

The commands themselves stand in `commands/`, a file each.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence

from ds_train import __version__
from ds_train.commands import (
    build,
    compare,
    data,
    doctor,
    evaluate,
    export,
    export_curriculum,
    fewshot,
    generate,
    launch,
    plan,
    quickstart,
    recipes,
    report,
    score,
    train,
    transfer,
    tune,
    validate,
)
from ds_train.commands.common import is_rank
from ds_train.errors import DsTrainError, InputError, RolledBack

_COMMANDS = (
    *(validate, plan, tune, data, score, train, doctor, launch),
    *(compare, fewshot, transfer, report, evaluate, export, export_curriculum, generate),
    *(recipes, build, quickstart),
)
"""In the order of `ds-train --help`."""
_EPILOG = """\
start here:
  ds-train recipes                                 what there is to copy
  ds-train recipes copy lora_sft_messages my.yaml
  ds-train validate my.yaml                        every fault at once, without a GPU
  ds-train data my.yaml                            what is learned from
  ds-train train my.yaml

exit codes: 0 done (or stopped and saved), 2 something you gave is wrong, 1 the run failed
"""
_INTERRUPTED = 128 + signal.SIGINT
_OTHER_RANK_SECONDS = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 the user's input, 1 the rest."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = parse(arguments)
        _silence_hub()
        code: int = args.run_command(args)
        sys.stdout.flush()
    except DsTrainError as error:
        _report(error)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = _INTERRUPTED
    except BrokenPipeError:
        # the reader (`| head`) has seen enough; stdout must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if is_rank():
        from ds_train.launch.process import leave_exit_code

        leave_exit_code(code)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="ds-train",
        description="Fine-tuning of large language models on DeepSpeed, whose runs can be trusted.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ds-train {__version__}")
    # the deepspeed launcher hands this to every rank; LOCAL_RANK says the same
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """Arguments of one command; `launcher_args` are those after `--`.

    argparse ends a list of overrides at the first option, so the later ones are gathered here.
    """
    parser = build_parser()
    given = list(arguments)
    launcher_args: list[str] = []
    if "--" in arguments and {"train", "launch"} & {*arguments[: arguments.index("--")]}:
        split = arguments.index("--")
        arguments, launcher_args = arguments[:split], arguments[split + 1 :]
    args, rest = parser.parse_known_args(arguments)
    if rest and hasattr(args, "overrides"):
        args.overrides += [text for text in rest if not text.startswith("-")]
        rest = [text for text in rest if text.startswith("-")]
    if rest:
        parser.error(f"unknown argument {rest[0]} of ds-train {args.command}; see --help")
    args.launcher_args, args.given = launcher_args, given
    return args


def _silence_hub() -> None:
    """Keep the hub's "Retrying in 8s" back, which comes six times before our own message."""
    import logging  # `--help` does without it

    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)


def _report(error: DsTrainError) -> None:
    """Print the message, once per run: rank 0 speaks for all that found the same fault."""
    rank = os.environ.get("RANK", "0")
    if isinstance(error, InputError | RolledBack) and rank != "0":
        # Rank 0 found it too, as a rule, and its exit makes the launcher end this process now.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_OTHER_RANK_SECONDS)
    prefix = f"error (rank {rank}): " if rank != "0" else "error: "
    faults = error.faults if isinstance(error, InputError) else [str(error)]
    if len(faults) > 1:
        print(f"{prefix}{len(faults)} faults:", file=sys.stderr)
        prefix = "  "
    for fault in faults:
        print(prefix + fault, file=sys.stderr)
