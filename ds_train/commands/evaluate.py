"""`ds-train evaluate`: the loss of a run, an adapter or a model on data, its bits per byte of any
text, or lm_eval's tasks.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ds_train.commands.common import (
    Commands,
    add_command,
    add_overrides,
    add_target_arguments,
    is_rank,
)
from ds_train.commands.values import count, names, numbers
from ds_train.errors import ConfigError

if TYPE_CHECKING:
    from ds_train.evaluate.scored_target import ScoredTarget

_TASK_ONLY = (
    *("task_path", "shots", "samples", "demonstrations", "draw", "calibration", "normalise"),
    *("batch_tokens", "processes", "zero"),
)
"""Options that say nothing without --tasks; the last three with --text."""


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        run,
        "measure a run, an adapter or a model: its loss on data or text, or lm_eval's tasks",
        "ds-train evaluate runs/first --checkpoint best\n"
        "ds-train evaluate runs/first/merged --recipe my.yaml\n"
        "ds-train evaluate runs/first --tasks arc_easy,piqa --shots 0,5 --output numbers.json\n"
        "ds-train evaluate my-model --tasks my_task --task-path my_tasks --processes 8\n"
        "ds-train evaluate my-model --tasks sst2 --shots 4 --demonstrations bm25 "
        "--calibration contextual\n"
        "ds-train evaluate runs/first --text book.txt letters.txt",
    )
    parser.add_argument("target", help="run folder, adapter folder, model folder or hub name")
    add_overrides(parser)
    add_target_arguments(parser)
    parser.add_argument("--recipe", help="whose data to use; the run's own when left out")
    parser.add_argument("--split", choices=["validation", "dev", "train"], default="validation")
    parser.add_argument(
        "--max-rows",
        type=count,
        dest="max_samples",
        metavar="N",
        help="only the first so many samples",
    )
    parser.add_argument("--batch-size", type=count, help="samples at once")
    parser.add_argument("--output", help="write the numbers to this JSON file")
    _add_task_arguments(parser)
    _add_text_arguments(parser)
    _add_scorer_arguments(parser)


def _add_task_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_argument_group("evaluation tasks (needs the package lm_eval)")
    tasks.add_argument(
        "--tasks",
        type=names,
        metavar="a,b",
        help="names of tasks, groups or tags, patterns such as blimp_*, or YAML files",
    )
    tasks.add_argument("--task-path", metavar="DIR", help="a folder of your own task YAML files")
    _add_shots_arguments(tasks)
    tasks.add_argument(
        "--calibration",
        metavar="NAME",
        help="none, contextual, batch, pmi, or several of them: a,b",
    )
    tasks.add_argument(
        "--normalise",
        metavar="NAME",
        help="none, tokens, chars, bytes, pmi, or several of them: a,b",
    )
    tasks.add_argument(
        "--samples", action="store_true", help="with --output: every document's answers too"
    )


def _add_shots_arguments(tasks: argparse._ArgumentGroup) -> None:
    """Which demonstrations stand before a question."""
    tasks.add_argument(
        "--shots",
        type=numbers,
        default=(),
        metavar="0,2,4",
        help="numbers of demonstrations; each task's own when left out",
    )
    tasks.add_argument(
        "--seeds",
        type=numbers,
        default=(1234,),
        metavar="1,2,3",
        help="of the demonstrations (default 1234)",
    )
    tasks.add_argument(
        "--demonstrations",
        metavar="NAME",
        help="random, balanced, bm25, knn (by the model's own hidden states), fixed or "
        "fixed:3,17,42; each task's own way when left out",
    )
    tasks.add_argument(
        "--draw",
        metavar="document|lm_eval",
        help="draw from a hash of seed and document (default), or as lm_eval does",
    )


def _add_text_arguments(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument_group("any text")
    text.add_argument(
        "--text", nargs="+", metavar="FILE", help="bits per byte and perplexity of these files"
    )
    text.add_argument(
        "--max-length", type=count, metavar="N", help="tokens of a window; the model's if left out"
    )


def _add_scorer_arguments(parser: argparse.ArgumentParser) -> None:
    """How tasks and text alike are scored."""
    shared = parser.add_argument_group("evaluation tasks and text")
    shared.add_argument(
        "--batch-tokens", type=count, metavar="N", help="tokens of a batch, padding included"
    )
    shared.add_argument(
        "--processes", type=count, metavar="N", help="of this machine, one for each GPU"
    )
    shared.add_argument(
        "--zero",
        type=int,
        choices=[0, 3],
        default=0,
        help="3: each process holds a part of the model; 0 (default): all of it",
    )


def run(args: argparse.Namespace) -> int:
    if args.tasks is not None and args.text is not None:
        raise ConfigError("--tasks and --text are two evaluations; run one after the other.")
    if args.max_length is not None and args.text is None:
        raise ConfigError("--max-length: is the window of --text FILE; leave it out.")
    if args.tasks is not None:
        return _evaluate_tasks(args)
    if args.text is not None:
        return _evaluate_text(args)
    for name in _TASK_ONLY:
        if getattr(args, name):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option}: is for evaluation tasks; name them with --tasks a,b.")
    from ds_train.evaluate.loss import evaluate_command

    evaluate_command(
        args.target,
        checkpoint=args.checkpoint,
        base=args.base,
        recipe=args.recipe,
        overrides=args.overrides,
        split=args.split,
        max_samples=args.max_samples,
        batch_size=args.batch_size,
        dtype=args.dtype,
        device=args.device,
        output=args.output,
    )
    return 0


def _evaluate_tasks(args: argparse.Namespace) -> int:
    from ds_train.evaluate.task_list import MISSING, is_installed

    if not is_installed():
        raise ConfigError(MISSING)
    for name in ("recipe", "overrides", "batch_size"):
        if getattr(args, name):
            raise ConfigError(
                f"--tasks: has no use for {'--batch-size' if name == 'batch_size' else name}; "
                "leave it out" + (", or give --batch-tokens." if name == "batch_size" else ".")
            )
    from ds_train.evaluate.task_command import evaluate_tasks_command
    from ds_train.evaluate.task_options import TaskOptions
    from ds_train.evaluate.tasks import TaskSettings

    return evaluate_tasks_command(
        _scored_target(args),
        TaskSettings(
            tasks=args.tasks,
            task_path=args.task_path,
            shots=args.shots,
            seeds=args.seeds,
            limit=args.max_samples,
            options=TaskOptions.parse(
                args.demonstrations, args.draw, args.calibration, args.normalise
            ),
            log_samples=args.samples,
        ),
        processes=args.processes,
        arguments=args.given,
        is_rank=is_rank(),
        output=args.output,
    )


def _evaluate_text(args: argparse.Namespace) -> int:
    for name in (*_TASK_ONLY[:-3], "recipe", "overrides", "batch_size", "max_samples"):
        if getattr(args, name):
            option = {"max_samples": "--max-rows", "overrides": "overrides"}.get(
                name, "--" + name.replace("_", "-")
            )
            raise ConfigError(f"--text: has no use for {option}; leave it out.")
    from ds_train.evaluate.text_command import evaluate_text_command

    return evaluate_text_command(
        _scored_target(args),
        args.text,
        max_length=args.max_length,
        processes=args.processes,
        arguments=args.given,
        is_rank=is_rank(),
        output=args.output,
    )


def _scored_target(args: argparse.Namespace) -> ScoredTarget:
    from ds_train.evaluate.scored_target import ScoredTarget

    return ScoredTarget(
        args.target,
        checkpoint=args.checkpoint,
        base=args.base,
        dtype=args.dtype,
        device=args.device,
        zero=args.zero,
        batch_tokens=args.batch_tokens,
    )
