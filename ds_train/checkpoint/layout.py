"""Plans the weight files of an exported model: which tensor in which file, from where.

Over a base, its own files are kept, with the trained tensors in place of the old ones. Without one
(trained from random weights) every tensor comes from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ds_train.checkpoint.base_files import BaseFiles
from ds_train.checkpoint.merge import Changes, adapter_changes, full_changes
from ds_train.checkpoint.shards import TensorSpec, main_dtype
from ds_train.config.run import RunConfig
from ds_train.errors import CheckpointError, quoted
from ds_train.model.files import weight_files
from ds_train.model.load import DTYPES
from ds_train.plan.headers import SINGLE

WEIGHT_METHODS = ("full", "partial")
SHARD_BYTES = 5 * 10**9
"""Size of a file where there is no base whose split could be kept."""


@dataclass(frozen=True)
class Layout:
    """Which tensor goes into which file, and where its value comes from."""

    files: dict[str, list[TensorSpec]]
    make: Callable[[str], Tensor]
    untied: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(spec.num_bytes for specs in self.files.values() for spec in specs)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of most tensors."""
        return main_dtype([spec for specs in self.files.values() for spec in specs])


def plan_layout(config: RunConfig, step: Path, model: nn.Module) -> Layout:
    """The files of the model that `step` is a checkpoint of; `model` is its skeleton.

    Raises:
        CheckpointError: the checkpoint does not fit the base, or has too little without one.
    """
    if config.model.init == "random":
        if config.adapter.method != "full":
            raise CheckpointError(
                f"model.init = random with adapter.method = {config.adapter.method}: the random "
                "base was never saved, so there is nothing to merge into."
            )
        return _layout_of_state(full_changes(step), model, DTYPES[config.model.dtype], step)
    base = BaseFiles(weight_files(config.model.name_or_path, config.model.revision), model)
    if config.adapter.method not in WEIGHT_METHODS:
        changes = adapter_changes(step, model, base.read)
    else:
        changes = full_changes(step)
        if config.adapter.method == "full" and _strangers(changes, base):
            # transformers renames or joins the files' tensors (experts); what it holds in the end
            # is all in the checkpoint, and can be read under the names it has there.
            return _layout_of_state(changes, model, base.dtype, step)
    return _layout_over_base(changes, base)


def _layout_over_base(changes: Changes, base: BaseFiles) -> Layout:
    """The base's files with the trained tensors in place of the old ones."""
    if strangers := _strangers(changes, base):
        raise CheckpointError(
            f"{len(strangers)} trained tensors have no counterpart in the base model's files "
            f"({', '.join(strangers[:3])}). Is model.name_or_path still the model of the run?"
        )
    weights = base.weights
    files = {
        path.name: [weights.specs[key] for key in weights.keys_of(path)] for path in weights.paths
    }
    changed: dict[str, str] = {}  # key in the files -> name of the parameter that it becomes
    for name in sorted(changes.names):
        if not changes.untied or changes.names.isdisjoint(set(base.same(name)) - {name}):
            changed |= dict.fromkeys(base.keys(name), name)
        elif (own := base.own_key(name)) is not None:
            changed[own] = name
        else:  # shared its tensor with another until now
            changed[name] = name
            dtype = weights.specs[base.keys(name)[0]].dtype
            files[weights.paths[-1].name].append(TensorSpec(name, dtype, base.shapes[name]))

    def make(key: str) -> Tensor:
        return changes.make(changed[key]) if key in changed else weights.read(key)

    return Layout(files, make, changes.untied)


def _strangers(changes: Changes, base: BaseFiles) -> list[str]:
    return sorted(name for name in changes.names if name not in base.shapes or not base.keys(name))


def _layout_of_state(changes: Changes, model: nn.Module, dtype: torch.dtype, step: Path) -> Layout:
    """Every tensor from the checkpoint, in files of SHARD_BYTES."""
    names = [name for name, _ in model.named_parameters()]
    missing = sorted(set(names) - changes.names)
    strangers = sorted(changes.names - set(names))
    if missing or strangers:
        shown = ", ".join([*missing, *strangers][:3])
        raise CheckpointError(
            f"{quoted(step)} does not fit the model: {len(missing)} of its parameters are missing, "
            f"{len(strangers)} are not the model's ({shown}). Is model.name_or_path still the "
            "model of the run?"
        )
    shards: list[list[TensorSpec]] = [[]]
    for name, parameter in model.named_parameters():
        spec = TensorSpec(name, dtype, tuple(parameter.shape))
        if shards[-1] and sum(s.num_bytes for s in shards[-1]) + spec.num_bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(spec)
    count = len(shards)
    files_of = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    files = dict(zip(files_of if count > 1 else [SINGLE], shards, strict=True))
    return Layout(files, changes.make, untied=False)


def cast_layout(layout: Layout, dtype: torch.dtype) -> Layout:
    """The same files with every floating-point tensor in `dtype`."""
    files = {
        name: [
            replace(spec, dtype=dtype) if spec.dtype.is_floating_point else spec for spec in specs
        ]
        for name, specs in layout.files.items()
    }
    return replace(layout, files=files)
