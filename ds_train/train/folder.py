"""The run folder at the start: where the run goes on from, and what is written before it does."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ds_train.checkpoint.folder import CheckpointFacts, latest_checkpoint, read_facts
from ds_train.checkpoint.state import remove_partial
from ds_train.config.load import dump_recipe
from ds_train.config.run import RunConfig
from ds_train.curriculum.refresh import remove_refreshes_from, segments_of
from ds_train.engine.ranks import Ranks
from ds_train.errors import CheckpointError, quoted
from ds_train.model.files import base_fingerprint
from ds_train.model.write import save_tensors
from ds_train.paths import RunPaths, replace_text
from ds_train.plan.batch import BatchPlan
from ds_train.plan.resume import check_same_inputs, check_same_run
from ds_train.train.run import Run

INITIAL_LORA = "initial_lora.safetensors"
"""PiSSA's first A and B, which the base weights have lost."""

_PACKAGES = ("ds-train", "deepspeed", "torch", "transformers", "peft", "datasets")


def agreed_start(
    config: RunConfig,
    batch: BatchPlan,
    data_fingerprint: str,
    difficulty_fingerprint: str,
    ranks: Ranks,
) -> CheckpointFacts:
    """Where the run begins, and proof that every rank sees the same files.

    Raises:
        CheckpointError: on every rank, where output_dir, model or data differ between machines.
    """
    fingerprints = base_fingerprint(config.model), data_fingerprint, difficulty_fingerprint
    start = _find_start(config, batch, *fingerprints)
    seen = ranks.texts(f"step {start.step}, {', '.join(filter(None, fingerprints))}")
    if len(set(seen)) > 1:
        other = next(text for text in seen if text != seen[0])
        raise CheckpointError(
            f"output_dir = {quoted(config.output_dir)}: rank 0 sees {seen[0]} and rank "
            f"{seen.index(other)} sees {other} (checkpoint, model, data). Every machine must see "
            "the same files: put output_dir, model and data on a shared file system."
        )
    return start


def _find_start(
    config: RunConfig, batch: BatchPlan, base: str, data: str, difficulty: str
) -> CheckpointFacts:
    check_same_run(config, batch.global_batch_size)
    check_same_inputs(config, base, data, difficulty)
    folder = latest_checkpoint(RunPaths(Path(config.output_dir)))
    if folder is not None:
        return read_facts(folder)
    return CheckpointFacts(0, 0, 0, None, base, data, difficulty, evaluated_step=-1)


def write_run_folder(run: Run, ds_config: dict[str, Any]) -> None:
    """Recipe, DeepSpeed config, audit and fingerprints; each file in one move."""
    paths = run.paths
    paths.checkpoints.mkdir(parents=True, exist_ok=True)
    remove_partial(paths)
    replace_text(paths.recipe, dump_recipe(run.config))
    replace_text(paths.ds_config, json.dumps(ds_config, indent=1) + "\n")
    replace_text(paths.audit, json.dumps(run.data.audit, indent=1) + "\n")
    if run.data.subset is not None:
        replace_text(paths.subset, json.dumps(run.data.subset.facts, indent=1) + "\n")
    facts = {
        "base_fingerprint": run.start.base_fingerprint,
        "data_fingerprint": run.start.data_fingerprint,
        "difficulty_fingerprint": run.start.difficulty_fingerprint,
        "global_batch_size": run.batch.global_batch_size,
        "world_size": run.ranks.world_size,
        "total_steps": run.total_steps,
        "versions": {name: version(name) for name in _PACKAGES},
    }
    replace_text(paths.run_facts, json.dumps(facts, indent=1) + "\n")
    if (segments := segments_of(run.plan)) is not None:
        remove_refreshes_from(paths, segments)
    if run.initial and not run.start.step:
        save_tensors(paths.root / INITIAL_LORA, run.initial)
