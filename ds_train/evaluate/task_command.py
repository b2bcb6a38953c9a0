"""`ds-train evaluate TARGET --tasks`: lm_eval's tasks with a run, an adapter or a model.

With several processes the command starts itself through the deepspeed launcher; each process has
the whole model, or under ZeRO-3 its part of it, and computes its share of the requests.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ds_train.engine.ranks import Ranks
from ds_train.errors import InputError, quoted
from ds_train.evaluate.generation import generator
from ds_train.evaluate.model import Target, find_target
from ds_train.evaluate.scored_target import (
    ScoredTarget,
    check_output,
    here_or_in_processes,
    open_scorer,
    say_on_stderr,
    silent,
)
from ds_train.evaluate.task_list import check_pools, open_tasks
from ds_train.evaluate.task_model import TaskModel
from ds_train.evaluate.tasks import TaskResult, TaskSettings, format_results, run_tasks
from ds_train.fewshot.spread import spread

Say = Callable[[str], Any]


def evaluate_tasks_command(
    target: ScoredTarget,
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
    if output is not None and not is_rank:
        check_output(Path(output))

    def check() -> None:
        find_target(target.target, target.checkpoint, target.base)
        _open(settings)

    def work(ranks: Ranks) -> None:
        _evaluate(target, settings, ranks, output)

    return here_or_in_processes(
        work, check, target, processes=processes, arguments=arguments, is_rank=is_rank
    )


def _evaluate(
    target: ScoredTarget, settings: TaskSettings, ranks: Ranks, output: str | Path | None
) -> list[TaskResult]:
    """The evaluation in this process; the first rank prints and writes."""
    say = say_on_stderr if ranks.is_main else silent
    began = time.monotonic()
    loaded = _open(settings)
    found = find_target(target.target, target.checkpoint, target.base)
    model = task_model(found, target, ranks, say)
    results = run_tasks(loaded, settings, model, say)
    if ranks.is_main:
        print(f"{found.title}\n{format_results(results)}")
        if output is not None:
            seconds = time.monotonic() - began
            write_results(Path(output), found, target, settings, ranks, results, seconds)
    return results


def _open(settings: TaskSettings) -> dict[str, Any]:
    """The tasks; what is wrong with them is known before a model is loaded."""
    loaded = open_tasks(settings.tasks, settings.task_path)
    for shots in settings.shots:
        check_pools(loaded, shots)
    return loaded


def task_model(found: Target, target: ScoredTarget, ranks: Ranks, say: Say) -> TaskModel:
    """The model that answers lm_eval, loaded; a collective call where there are several ranks."""
    scorer, tokenizer = open_scorer(found, target, ranks, say)
    return TaskModel(scorer, tokenizer, generate=generator(scorer, tokenizer))


def write_results(
    path: Path,
    found: Target,
    target: ScoredTarget,
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
        **settings.options.to_json(),
        "seconds": round(seconds, 3),
        "evaluations": [result.to_json() for result in results],
        "seeds": over_seeds(results),
    }
    text = json.dumps(content, indent=1, default=handle_non_serializable, ensure_ascii=False)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {quoted(path)}: can't be written: {error.strerror}.") from None


def over_seeds(results: Sequence[TaskResult]) -> list[dict[str, Any]]:
    """Mean and spread of every metric over the seeds, by task and number of shots."""
    groups: dict[tuple[str, int | None], list[TaskResult]] = {}
    for result in results:
        groups.setdefault((result.task, result.shots), []).append(result)
    return [
        {
            "task": task,
            "shots": shots,
            "seeds": [one.seed for one in group],
            "metrics": {
                key: spread([one.numbers()[key] for one in group]) for key in group[0].numbers()
            },
        }
        for (task, shots), group in groups.items()
    ]
