"""Settings of the `evaluate` section that say nothing; see rules.py."""

from __future__ import annotations

from collections.abc import Iterator

from ds_train.config.base import is_given
from ds_train.config.run import RunConfig


def evaluate_rules(config: RunConfig) -> Iterator[str]:
    """Faults of evaluations on held-out data and on tasks, where there is neither."""
    yield from _held_out(config)
    yield from _tasks(config)


def _held_out(config: RunConfig) -> Iterator[str]:
    evaluate, validation = config.evaluate, config.data.validation
    subset = None if config.fewshot is None else config.fewshot.subset
    if validation.sources or validation.fraction or (subset is not None and subset.dev):
        return
    if config.data.dev is not None:
        return  # its own rule asks for validation
    if config.held_out_tasks:
        return
    for field in ("every", "at_start", "max_rows", "rank_classification"):
        if is_given(evaluate, field):
            yield (
                f"evaluate.{field}: there is no validation data; set data.validation: "
                f"{{fraction: 0.05}} or give data.validation.sources."
            )


def _tasks(config: RunConfig) -> Iterator[str]:
    if config.evaluate.tasks:
        return
    for field in ("task_path", "shots", "seeds", "tasks_every"):
        if is_given(config.evaluate, field):
            yield f"evaluate.{field}: is for evaluation tasks; name them in evaluate.tasks: [a, b]."
