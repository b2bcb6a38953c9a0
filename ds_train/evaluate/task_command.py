"""`ds-train evaluate TARGET --tasks`: lm_eval's tasks with a run, an adapter or a model.

With several processes the command starts itself through the deepspeed launcher; each process has
the whole model, or under ZeRO-3 its part of it, and computes its share of the requests.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ds_train.engine.ranks import Ranks
from ds_train.errors import ConfigError, InputError, quoted
from ds_train.evaluate.model import Target, find_target, load_for_inference
from ds_train.evaluate.scorer import Computes, RequestScorer
from ds_train.evaluate.task_list import open_tasks
from ds_train.evaluate.task_model import TaskModel
from ds_train.evaluate.tasks import TaskResult, TaskSettings, format_results, run_tasks
from ds_train.launch.command import here_command, launcher_environment, master_port
from ds_train.launch.guard import stop_with_launcher
from ds_train.launch.process import run_launcher
from ds_train.launch.world import World, visible_gpus
from ds_train.model.head import LanguageModel

Say = Callable[[str], Any]


@dataclass(frozen=True)
class TaskTarget:
    """Which model is asked, and how it is held."""

    target: str
    checkpoint: str = "latest"
    base: bool = False
    dtype: str | None = None
    device: str | None = None
    zero: int = 0
    """3: every rank holds a part of the weights; 0: all of them"""
    batch_tokens: int | None = None
    """tokens of a batch, padding included; by the device when None"""


def evaluate_tasks_command(
    target: TaskTarget,
    settings: TaskSettings,
    *,
    processes: int | None,
    arguments: Sequence[str],
    is_rank: bool,
    output: str | Path | None = None,
) -> int:
    """Evaluate here, or in processes of their own; prints a table and returns the exit code.

    Args:
        processes: of this machine; one without a launcher when None, unless ZeRO-3 is asked for.
        arguments: what was typed after `ds-train`, for the processes.
        is_rank: the launcher has started this process.
        output: a JSON file for the numbers.

    Raises:
        ConfigError: settings or tasks; DataError: a document; ModelError: no such model.
    """
    if is_rank:
        stop_with_launcher()
        return _as_rank(target, settings, output)
    if output is not None:
        _check_output(Path(output))
    if processes is None and target.zero == 0:
        _evaluate(target, settings, Ranks(0, 0, 1), output)
        return 0
    # their faults are told once, by this process, before anything starts
    find_target(target.target, target.checkpoint, target.base)
    open_tasks(settings.tasks, settings.task_path)
    world = world_here(processes or 1, target.device)
    command = here_command(world, arguments)
    return run_launcher(
        command, launcher_environment(world), port=master_port(command), say=_say_on_stderr
    )


def world_here(processes: int, device: str | None) -> World:
    """So many processes of this machine, one for each GPU where there are GPUs."""
    gpus = [] if device == "cpu" else visible_gpus()
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(
            f"--device {device}: several processes take a device each; leave it out, or say cpu."
        )
    if gpus and processes > len(gpus):
        raise ConfigError(
            f"--processes {processes}: this machine shows {len(gpus)} GPUs; take at most one "
            "process for each, or --device cpu."
        )
    slots = {"localhost": gpus[:processes] if gpus else list(range(processes))}
    return World(slots, None, len(gpus), None)


def _as_rank(target: TaskTarget, settings: TaskSettings, output: str | Path | None) -> int:
    # it takes seconds to import DeepSpeed, and only ranks need it
    from ds_train.engine.engine import start_process_group, stop_process_group

    ranks = Ranks.from_environment()
    start_process_group(ranks)
    _evaluate(target, settings, ranks, output)
    # not after an error: it would wait for ranks that are stuck, and hide the message
    stop_process_group()
    return 0


def _evaluate(
    target: TaskTarget, settings: TaskSettings, ranks: Ranks, output: str | Path | None
) -> list[TaskResult]:
    """The evaluation in this process; the first rank prints and writes."""
    say = _say_on_stderr if ranks.is_main else _silent
    began = time.monotonic()
    loaded = open_tasks(settings.tasks, settings.task_path)
    found = find_target(target.target, target.checkpoint, target.base)
    model = task_model(found, target, ranks, say)
    results = run_tasks(loaded, settings, model, say)
    if ranks.is_main:
        print(f"{found.title}\n{format_results(results)}")
        if output is not None:
            seconds = time.monotonic() - began
            write_results(Path(output), found, target, settings, ranks, results, seconds)
    return results


def task_model(found: Target, target: TaskTarget, ranks: Ranks, say: Say) -> TaskModel:
    """The model that answers lm_eval, loaded; a collective call where there are several ranks."""
    device = target.device or str(ranks.device)
    if target.zero == 3:
        from ds_train.engine.engine import shard_for_inference

        model, tokenizer = load_for_inference(found, dtype=target.dtype, device="cpu", say=say)
        dtype = target.dtype or found.model.dtype
        computes: Computes = shard_for_inference(LanguageModel(model), dtype, ranks)
        say(f"engine: ZeRO-3, {ranks.world_size} processes")
    else:
        model, tokenizer = load_for_inference(found, dtype=target.dtype, device=device, say=say)
        computes = LanguageModel(model)
    scorer = RequestScorer(
        computes,
        ranks,
        max_length=readable_tokens(model, tokenizer),
        batch_tokens=target.batch_tokens,
        say=say,
    )
    return TaskModel(scorer, tokenizer)


def readable_tokens(model: Any, tokenizer: Any) -> int:
    """Tokens that a model reads at most, less the virtual ones of its adapter."""
    from lm_eval.models.utils import resolve_max_length

    peft = getattr(model, "peft_config", {}).values()
    virtual = sum(getattr(one, "num_virtual_tokens", None) or 0 for one in peft)
    return int(resolve_max_length(model.config, tokenizer)) - virtual


def write_results(
    path: Path,
    found: Target,
    target: TaskTarget,
    settings: TaskSettings,
    ranks: Ranks,
    results: Sequence[TaskResult],
    seconds: float,
) -> None:
    """The numbers as JSON, under lm_eval's own keys for each task, number of shots and seed."""
    from lm_eval.utils import handle_non_serializable

    content = {
        "target": found.title,
        "lm_eval": version("lm_eval"),
        "dtype": target.dtype or found.model.dtype,
        "processes": ranks.world_size,
        "zero_stage": target.zero,
        "limit": settings.limit,
        "seconds": round(seconds, 3),
        "evaluations": [result.to_json() for result in results],
    }
    text = json.dumps(content, indent=1, default=handle_non_serializable, ensure_ascii=False)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {quoted(path)}: can't be written: {error.strerror}.") from None


def _check_output(path: Path) -> None:
    """A file that can't be written is better known before the evaluation."""
    if path.is_dir():
        raise InputError(f"--output {quoted(path)}: is a folder; name a file.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--output {quoted(path)}: there is no folder {path.absolute().parent}.")


def _say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    """The first rank speaks for all."""
