"""The command line. Each command imports what it needs when it is chosen, and nothing before."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ds_train.cli_parser import build_parser
from ds_train.errors import ConfigError, DsTrainError, InputError, RolledBack

if TYPE_CHECKING:
    from ds_train.evaluate.scored_target import ScoredTarget

_INTERRUPTED = 128 + signal.SIGINT
_OTHER_RANK_SECONDS = 5.0
_TASK_ONLY = (
    *("task_path", "shots", "samples", "demonstrations", "draw", "calibration", "normalise"),
    *("batch_tokens", "processes", "zero"),
)
"""Options of `ds-train evaluate` that say nothing without --tasks; the last three with --text."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 the user's input, 1 the rest."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # its "Retrying in 8s" comes six times before our own message
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    try:
        code = _run(parse(arguments))
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
    if _is_rank():
        from ds_train.launch.process import leave_exit_code

        leave_exit_code(code)
    return code


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


def _run(args: argparse.Namespace) -> int:
    command = {
        "validate": _validate,
        "data": _data,
        "score": _score,
        "export-curriculum": _export_curriculum,
        "plan": _plan,
        "tune": _tune,
        "doctor": _doctor,
        "train": _train,
        "launch": _launch,
        "compare": _compare,
        "fewshot": _fewshot,
        "transfer": _transfer,
        "evaluate": _evaluate,
        "export": _export,
        "generate": _generate,
        "recipes": _recipes,
        "build": _build,
        "quickstart": _quickstart,
    }[args.command]
    return command(args)


def _validate(args: argparse.Namespace) -> int:
    import json

    from ds_train.config.load import dump_recipe
    from ds_train.plan.validate import summary, validate
    from ds_train.train.late import likely_late_curriculum

    plan = validate(args.recipe, args.overrides)
    if args.ds_config:
        print(json.dumps(plan.ds_config, indent=2))
    if args.resolved:
        print(dump_recipe(plan.config), end="")
    if not (args.ds_config or args.resolved):
        late = likely_late_curriculum(plan.config)
        notes = [] if late is None else [late]
        print("\n".join([*summary(plan), *notes, f"{args.recipe} is valid"]))
    return 0


def _plan(args: argparse.Namespace) -> int:
    if args.measure:
        from ds_train.plan.measure import measure_command

        return measure_command(args.recipe, args.overrides, args.json)
    from ds_train.cli_cluster import CLUSTER_OPTIONS
    from ds_train.plan.command import plan_command

    return plan_command(
        args.recipe,
        args.overrides,
        cluster=args.cluster,
        options={name: getattr(args, name) for name in CLUSTER_OPTIONS},
        utilisation=args.utilisation,
        json_path=args.json,
    )


def _tune(args: argparse.Namespace) -> int:
    from ds_train.cli_cluster import CLUSTER_OPTIONS
    from ds_train.tune.command import TuneOptions, tune_command

    return tune_command(
        args.recipe,
        args.overrides,
        cluster=args.cluster,
        cluster_options={name: getattr(args, name) for name in CLUSTER_OPTIONS},
        options=TuneOptions(
            num_trials=args.trials,
            num_steps=args.steps,
            num_rounds=args.rounds,
            trial_seconds=60.0 * args.minutes,
            output=args.output,
            in_place=args.in_place,
            json_path=args.json,
        ),
    )


def _data(args: argparse.Namespace) -> int:
    from ds_train.config.files import check_files
    from ds_train.config.load import load_recipe
    from ds_train.data.show import show_data

    config = load_recipe(args.recipe, args.overrides)
    if faults := check_files(config):
        raise ConfigError(faults)
    color = not args.no_color and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    show_data(config, step=args.step, rows=args.rows, color=color)
    return 0


def _score(args: argparse.Namespace) -> int:
    from ds_train.score.command import score_as_rank, score_command

    if _is_rank():
        return score_as_rank(args.recipe, args.overrides)
    return score_command(args.recipe, args.overrides, as_json=args.json)


def _export_curriculum(args: argparse.Namespace) -> int:
    from ds_train.curriculum.deepspeed_files import export_curriculum
    from ds_train.plan.validate import validate

    plan = validate(args.recipe, args.overrides)
    export_curriculum(plan.config, args.output)
    return 0


def _train(args: argparse.Namespace) -> int:
    if _is_rank():
        return _train_as_rank(args)
    from ds_train.launch.command import show_command
    from ds_train.plan.launch import plan_launch

    launch = plan_launch(args.recipe, args.overrides, args.launcher_args)
    if args.dry_run:
        print(show_command(launch.command))
        return 0
    from ds_train.train.restart import train_to_the_end

    return train_to_the_end(launch, args.recipe, args.overrides, args.launcher_args)


def _doctor(args: argparse.Namespace) -> int:
    from ds_train.doctor.command import doctor_command

    return doctor_command(
        args.recipe,
        args.overrides,
        hostfile=args.hostfile,
        json_file=args.json,
        need_disk=args.need_disk,
        all_reduce=not args.no_all_reduce,
    )


def _launch(args: argparse.Namespace) -> int:
    from ds_train.train.launch import launch_command

    return launch_command(args)


def _train_as_rank(args: argparse.Namespace) -> int:
    from ds_train.launch.guard import stop_with_launcher

    stop_with_launcher()
    from ds_train.config.load import load_recipe

    config = load_recipe(args.recipe, args.overrides)
    from ds_train.launch.watchdog import watched

    with watched(Path(config.output_dir), config.cluster.hang_seconds):
        from ds_train.train.loop import run  # torch: seconds in which a rank may be lost already

        return run(config)


def _compare(args: argparse.Namespace) -> int:
    from ds_train.compare.arms import plan_comparison

    recipe, overrides = args.recipe, args.overrides
    if args.digits is not None:
        from ds_train.compare.digits import digits_recipe

        recipe, overrides = digits_recipe(Path(args.digits), [recipe, *overrides])
    elif recipe is None:
        raise ConfigError("ds-train compare: name a recipe, or --digits FOLDER; see --help.")
    comparison = plan_comparison(recipe, overrides)  # its faults are told before torch is loaded
    from ds_train.compare.run import run_comparison

    return run_comparison(comparison)


def _transfer(args: argparse.Namespace) -> int:
    from ds_train.transfer.design import plan_transfer

    design = plan_transfer(args.recipe, args.overrides)  # faults are told before torch is loaded
    from ds_train.transfer.report import transfer_command

    return transfer_command(*design)


def _fewshot(args: argparse.Namespace) -> int:
    if args.demo is not None:
        from ds_train.compare.kinds_demo import fewshot_demo

        return fewshot_demo(Path(args.demo), [args.recipe, *args.overrides])
    if args.recipe is None:
        raise ConfigError("ds-train fewshot: name a recipe, or --demo FOLDER; see --help.")
    from ds_train.compare.kshot import fewshot_command, parse_seeds, parse_shots

    return fewshot_command(
        args.recipe,
        args.overrides,
        shots=parse_shots(args.k),
        seeds=None if args.seeds is None else parse_seeds(args.seeds),
    )


def _evaluate(args: argparse.Namespace) -> int:
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
        is_rank=_is_rank(),
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
        is_rank=_is_rank(),
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


def _export(args: argparse.Namespace) -> int:
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


def _generate(args: argparse.Namespace) -> int:
    from ds_train.evaluate.generate import generate_command

    generate_command(
        args.target,
        args.prompt,
        chat=args.chat,
        system=args.system,
        checkpoint=args.checkpoint,
        base=args.base,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        dtype=args.dtype,
        device=args.device,
    )
    return 0


def _recipes(args: argparse.Namespace) -> int:
    import textwrap

    from ds_train.config.recipes import bundled_recipes, copy_recipe, find_recipe
    from ds_train.plan.presets import ds_configs_dir

    folder = ds_configs_dir() / "recipes"
    if args.action == "show":
        print(find_recipe(folder, args.name).path.read_text(encoding="utf-8"), end="")
    elif args.action == "copy":
        target = copy_recipe(find_recipe(folder, args.name), args.destination)
        print(f"{target}: change it, then run ds-train validate {target}")
    else:
        for recipe in bundled_recipes(folder):
            text = textwrap.fill(
                recipe.description, 96, initial_indent="    ", subsequent_indent="    "
            )
            print(f"{recipe.name}\n{text}")
    return 0


def _build(args: argparse.Namespace) -> int:
    from ds_train.ops.build import build_command

    build_command(args.kind, args.arch)
    return 0


def _quickstart(args: argparse.Namespace) -> int:
    from ds_train.quickstart.run import quickstart

    quickstart(Path(args.output_dir), num_processes=args.num_processes)
    return 0


def _is_rank() -> bool:
    """Whether the deepspeed launcher (or torchrun) has started this process as one of several."""
    return "RANK" in os.environ


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
