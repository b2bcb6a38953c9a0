"""Trains the recipe's model with two small numbers of layers on one device, and extrapolates.

Memory and time are those of one rank by itself: layers are alike, so that both are linear in their
number, and what does not depend on it (embeddings, output layer, loss) is in both measurements.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_train.config.load import dump_recipe, load_recipe
from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError, RunFailed
from ds_train.launch.command import free_port
from ds_train.launch.process import remove_shared_memory
from ds_train.launch.world import visible_gpus
from ds_train.plan.architectures import ARCHITECTURES
from ds_train.plan.cluster import Cluster
from ds_train.plan.command import write_json
from ds_train.plan.cpu_heap import GIVE_BACK
from ds_train.plan.cpu_libraries import PROCESS_BYTES
from ds_train.plan.estimate import DEFAULT_UTILISATION, Estimate, estimate
from ds_train.plan.model_files import describe_model, read_config
from ds_train.plan.table import format_seconds_short
from ds_train.units import format_bytes

_DEPTHS = (2, 4)
"""Numbers of layers that are trained."""


@dataclass(frozen=True)
class Measured:
    """One depth: what the plan says and what was measured."""

    layers: int
    planned_bytes: int
    peak_bytes: float
    seconds: float
    extrapolated: bool = False

    @property
    def error(self) -> float:
        """Of the plan, as a share of the measurement."""
        return self.planned_bytes / self.peak_bytes - 1


def measure_command(recipe: str, overrides: list[str], json_path: str | None) -> int:
    """Print the table; 0. Raises ConfigError for what can't be shrunk, RunFailed for a crash."""
    config = load_recipe(recipe, overrides)
    if faults := list(_faults(config)):
        raise ConfigError(faults)
    raw = read_config(config.model)
    text = raw.get("text_config") or raw
    key = _depth_key(raw)
    full = int(text[key])
    depths = [depth for depth in _DEPTHS if depth < full] or [1]
    if len(depths) < 2:
        raise ConfigError(
            f"ds-train plan --measure: the model has {full} layers, too few to measure fewer; "
            "train it for a step instead (train.max_steps=1)."
        )
    found = [_measure(_shrunken(config, raw, key, full, depth), depth) for depth in depths]
    found.append(_extrapolated(config, found, full))
    print("\n".join(_table(config, found)))
    if json_path is not None:
        write_json(json_path, {"measured": [{**vars(one), "error": one.error} for one in found]})
    return 0


def _faults(config: RunConfig) -> Iterator[str]:
    if config.model.quantization != "none":
        yield (
            "model.quantization with --measure: the shrunken model has random weights, and nothing "
            "to quantise; plan without --measure."
        )
    if config.engine.sequence_parallel_size > 1:
        yield (
            "engine.sequence_parallel_size with --measure: one process alone is measured, which "
            "has no other to share its rows with; plan without --measure."
        )
    if config.adapter.path is not None:
        yield (
            "adapter.path with --measure: its layers are those of the whole model; describe the "
            "adapter in the recipe."
        )
    if config.adapter.method == "partial":
        yield (
            "adapter.method = partial with --measure: which layers train depends on how many there "
            "are; plan without --measure."
        )


def _depth_key(raw: dict[str, Any]) -> str:
    """What config.json calls its number of layers."""
    architecture = ARCHITECTURES.get(str(raw.get("model_type")))
    name = "num_hidden_layers"
    key = name if architecture is None else architecture.aliases.get(name, name)
    if key not in (raw.get("text_config") or raw) or "text_config" in raw:
        raise ConfigError(
            f"ds-train plan --measure: config.json has no {key}, so the model can't be shrunk."
        )
    return key


def _shrunken(config: RunConfig, raw: dict[str, Any], key: str, full: int, depth: int) -> RunConfig:
    """The recipe on a model of so many layers with random weights, alone on one device."""
    changes = {**config.model.config_overrides, key: depth}
    for name, value in raw.items():
        if isinstance(value, list) and len(value) == full:
            changes[name] = value[:depth]  # a list of what each layer is
    model = config.model.model_copy(update={"init": "random", "config_overrides": changes})
    batch = config.train.model_copy(
        update={"global_batch_size": None, "gradient_accumulation_steps": 2}
    )
    cluster = config.cluster.model_copy(update={"hostfile": None, "processes_per_node": 1})
    return config.model_copy(update={"model": model, "train": batch, "cluster": cluster})


def _measure(config: RunConfig, depth: int) -> Measured:
    planned = _planned(config)
    with tempfile.TemporaryDirectory(prefix="ds_train_measure_") as folder:
        recipe, result = Path(folder) / "recipe.yaml", Path(folder) / "result.json"
        recipe.write_text(dump_recipe(config), encoding="utf-8")
        port = free_port()
        environment = {**os.environ, "MASTER_PORT": str(port), **GIVE_BACK}
        command = [sys.executable, "-m", "ds_train.train.measure", str(recipe), str(result)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        remove_shared_memory(port)
        if done.returncode or not result.is_file():
            said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise RunFailed(f"ds-train plan --measure: {depth} layers did not train: {said[0]}")
        numbers = json.loads(result.read_text())
    peak = planned.memory.peak - (PROCESS_BYTES if planned.setting.cluster.is_cpu else 0)
    return Measured(depth, peak, numbers["peak_bytes"], numbers["seconds"])


def _planned(config: RunConfig) -> Estimate:
    """On one rank; a GPU without what its allocator and CUDA's context add."""
    device = Cluster("one device", 1, 1, is_cpu=not visible_gpus(), keeps_freed=False)
    return estimate(config, describe_model(config.model), device, DEFAULT_UTILISATION)


def _extrapolated(config: RunConfig, found: list[Measured], full: int) -> Measured:
    one, two = found
    share = (full - one.layers) / (two.layers - one.layers)
    peak = one.peak_bytes + share * (two.peak_bytes - one.peak_bytes)
    seconds = one.seconds + share * (two.seconds - one.seconds)
    first, second = one.planned_bytes, two.planned_bytes
    return Measured(full, round(first + share * (second - first)), peak, seconds, True)


def _table(config: RunConfig, found: list[Measured]) -> Iterator[str]:
    rows, length = config.train.per_device_train_batch_size, config.data.max_length
    freed = "" if visible_gpus() else "; what is freed is given back, which costs time"
    yield f"one rank, 2 micro-batches of {rows} rows x {length:,} tokens, third step{freed}"
    yield f"{'layers':>8}{'planned':>14}{'measured':>14}{'error':>9}{'step':>12}"
    for one in found:
        note = "  extrapolated" if one.extrapolated else ""
        yield (
            f"{one.layers:>8}{format_bytes(one.planned_bytes):>14}"
            f"{format_bytes(one.peak_bytes):>14}{100 * one.error:>+8.1f}%"
            f"{format_seconds_short(one.seconds):>12}{note}"
        )
