"""Whether a recipe may go on from an existing run folder: only if what matters is unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_train.config.faults import show
from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.errors import CheckpointError, ConfigError, quoted
from ds_train.paths import RunPaths

_FREE = {
    "output_dir",
    "engine",
    "cluster",
    "report",
    "checkpoint",
    "evaluate",
    "compare",
    "transfer",
    "model.attn_implementation",
    "model.gradient_checkpointing",
    "data.cache_dir",
    "data.num_workers",
    "train.per_device_train_batch_size",
    "train.per_device_eval_batch_size",
    "train.global_batch_size",
    "train.allow_empty_rows",
    "train.gradient_accumulation_steps",
    "train.rollback",
}
"""Keys that may change: they move the work around, not what is learned. The batch size is
compared as rows per step instead of by its three keys."""

_LENGTH = {"train.max_steps", "train.max_tokens"}
"""May change under a constant rate. Not num_train_epochs: the last step of an epoch-limited run
is filled up with empty rows, so that a longer run would have had other steps."""


def check_same_run(config: RunConfig, global_batch_size: int) -> None:
    """Compare the recipe with the one of the checkpoints in its output_dir, if there are any.

    Raises:
        CheckpointError: they differ in a way that changes what is learned; each is listed.
    """
    paths = RunPaths(Path(config.output_dir))
    if not any(paths.checkpoints.glob("step-*")):
        return
    old, facts = _stored(paths)
    old_global_batch_size = facts["global_batch_size"]
    differences = list(_differences(old.model_dump(mode="json"), config.model_dump(mode="json")))
    # Without a decay, and with a warm-up that is no share of the run, the rate does not depend on
    # where the run ends, so it may go on for longer; a curriculum and a mixture do depend on it.
    free_length = config.train.lr_scheduler_type == "constant"
    free_length = free_length and config.curriculum is None and config.data.mixture is None
    if free_length and not isinstance(config.train.warmup_steps, float):
        differences = [d for d in differences if d[0] not in _LENGTH]
    if old_global_batch_size != global_batch_size:
        differences.append(("rows per optimizer step", old_global_batch_size, global_batch_size))
    if differences:
        lines = "\n".join(f"  {key}: {show(was)} -> {show(now)}" for key, was, now in differences)
        raise CheckpointError(
            f"output_dir = {quoted(config.output_dir)} holds a run of another recipe:\n{lines}\n"
            "  Go on with the old values, or choose another output_dir."
        )


def check_same_inputs(
    config: RunConfig, base_fingerprint: str, data_fingerprint: str, difficulty_fingerprint: str
) -> None:
    """Compare the files behind the recipe with those that the checkpoints were made from.

    Raises:
        CheckpointError: the base model's weights, the data or its difficulty are others now.
    """
    paths = RunPaths(Path(config.output_dir))
    if not any(paths.checkpoints.glob("step-*")):
        return
    _, facts = _stored(paths)
    for what, was, now in (
        ("base model's weights", facts["base_fingerprint"], base_fingerprint),
        ("data", facts["data_fingerprint"], data_fingerprint),
        ("samples' difficulty", facts.get("difficulty_fingerprint", ""), difficulty_fingerprint),
    ):
        if was != now:
            raise CheckpointError(
                f"output_dir = {quoted(config.output_dir)}: the {what} changed since this run "
                f"began (fingerprint {was[:12]}, now {now[:12]}); restore the old files, or choose "
                "another output_dir."
            )


def is_run_of(config: RunConfig) -> bool:
    """Whether the recipe's output_dir holds a run of this recipe, whatever its batch size."""
    try:
        old, _ = _stored(RunPaths(Path(config.output_dir)))
    except CheckpointError:
        return False
    return not any(_differences(old.model_dump(mode="json"), config.model_dump(mode="json")))


def _stored(paths: RunPaths) -> tuple[RunConfig, dict[str, Any]]:
    """Recipe and run.json of the run in the folder."""
    needed = {"global_batch_size", "base_fingerprint", "data_fingerprint"}
    try:
        facts: dict[str, Any] = json.loads(paths.run_facts.read_text())
        if missing := needed - set(facts):
            raise ValueError(f"{', '.join(sorted(missing))} missing")
        return load_recipe(paths.recipe), facts
    except (OSError, ValueError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"output_dir = {quoted(paths.root)} has checkpoints, but {paths.recipe.name} or "
            f"{paths.run_facts.name} beside them can't be read ({error}); restore them, or choose "
            "another output_dir."
        ) from None


def _differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(old.keys() | new.keys()):
        name = f"{prefix}{key}"
        was, now = old.get(key), new.get(key)
        if name in _FREE or was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, f"{name}.")
        else:
            yield name, was, now
