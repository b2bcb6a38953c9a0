"""`ds-train plan`: what a recipe takes on a cluster, before anything is started.

Reads the recipe, config.json and the cluster's description; no torch, no GPU, no network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError
from ds_train.launch.world import find_world
from ds_train.paths import RunPaths
from ds_train.plan.advise import choose_preset, compare_presets, smallest_change
from ds_train.plan.cluster import Cluster, read_cluster, with_options
from ds_train.plan.cpu_heap import keeps_freed_memory
from ds_train.plan.estimate import DEFAULT_UTILISATION, estimate
from ds_train.plan.model_files import describe_model
from ds_train.plan.rules import check_rules
from ds_train.plan.table import advice, as_dict, plan_lines
from ds_train.report.record import read_records
from ds_train.report.traffic import Summary


def plan_command(
    recipe: str | Path,
    overrides: Sequence[str],
    *,
    cluster: str | None,
    options: dict[str, Any],
    utilisation: float | None,
    json_path: str | None,
) -> int:
    """Print the plan, and write it to a file; 0, or 1 where the run does not fit.

    Raises ConfigError or ModelError with what is wrong.
    """
    config = load_recipe(recipe, overrides)
    where = find_cluster(config, cluster, options)
    if faults := check_rules(config, where.world_size):
        raise ConfigError(faults)
    shape = describe_model(config.model)
    share = DEFAULT_UTILISATION if utilisation is None else utilisation
    one = estimate(config, shape, where, share)
    presets = compare_presets(config, shape, where, share)
    choice = choose_preset(presets)
    change = smallest_change(config, shape, where, share) if one.fits is False else None
    lines = [*plan_lines(one, presets, choice), *advice(one, choice, change), *_recorded(config)]
    print("\n".join(lines))
    if json_path is not None:
        said = {
            "recipe": str(recipe),
            "cluster": where.name,
            "plan": as_dict(one),
            "presets": {
                name: {"refused": found} if isinstance(found, str) else as_dict(found)
                for name, found in presets.items()
            },
            "preset": None if choice is None else {"name": choice[0], "reason": choice[1]},
            "smallest_change": None if change is None else list(change.settings),
        }
        write_json(json_path, said)
    return 1 if one.fits is False else 0


def _recorded(config: RunConfig) -> list[str]:
    """What a run of this recipe has recorded of its communication, once there is one."""
    paths, summary = RunPaths(Path(config.output_dir)), Summary()
    for record in read_records(paths.metrics):
        summary.add(record)
    line = summary.line()
    if line is None:
        return []
    head = f"recorded in {paths.root}: a counted step of rank 0; of a gather its own part"
    return ["", head, *summary.table(), line]


def write_json(path: str, value: dict[str, Any]) -> None:
    """A file for programs. Raises ConfigError when it can't be written."""
    try:
        Path(path).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f'--json = "{path}": can\'t be written: {error.strerror}.') from None


def find_cluster(config: RunConfig, name: str | None, options: dict[str, Any]) -> Cluster:
    """The one that is named, with the options laid over it; else what is described by them.

    Without either it is this machine's CPU. Raises ConfigError where nothing says what the GPUs
    are.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if name is not None:
        return with_options(read_cluster(name), given)
    if given:
        nodes, gpus = given.get("nodes", 1), given.get("gpus")
        if gpus is None:
            per_node = config.cluster.processes_per_node
            given["gpus"] = per_node if per_node is not None else 1
        return with_options(Cluster("as given", nodes=1, gpus=1), {**given, "nodes": nodes})
    world = find_world(config.cluster)
    if not world.on_cpu or not world.is_local:
        raise ConfigError(
            "ds-train plan: say what the GPUs are, with --cluster NAME (ds_configs/clusters/), or "
            "--gpu-memory 80GiB and, for times, --intra 900GB/s --inter 50GB/s."
        )
    return Cluster(
        "this machine's CPU",
        1,
        world.world_size,
        host_memory=psutil.virtual_memory().total,
        is_cpu=True,
        keeps_freed=keeps_freed_memory({**os.environ, **config.cluster.env}),
    )
