"""The launch of a recipe: checked, and the deepspeed command that would be run."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes.util import find_library
from dataclasses import dataclass, replace
from pathlib import Path

from ds_train.errors import ConfigError
from ds_train.launch.command import launcher_command
from ds_train.launch.per_node import refuse_restarts
from ds_train.paths import default_cache_dir
from ds_train.plan.ds_defaults import uses_nvme
from ds_train.plan.validate import Plan, validate

LAUNCH_RECIPE = "recipe.launch.yaml"
"""Recipe with its overrides applied, in the run folder, where arguments can't carry them."""


@dataclass(frozen=True)
class Launch:
    """What `ds-train train` starts."""

    plan: Plan
    command: list[str]
    written_recipe: Path | None
    """The recipe that must be written before, LAUNCH_RECIPE; None when there is no need."""


def plan_launch(
    recipe_path: str | Path, overrides: Sequence[str] = (), launcher_args: Sequence[str] = ()
) -> Launch:
    """Check a recipe as `validate` does, and make the command. Writes nothing, needs no torch.

    Raises ConfigError with every fault.
    """
    plan = validate(recipe_path, overrides, launcher_args)
    _check_device(plan)
    if plan.world.per_node:
        refuse_restarts(plan.config.cluster)
    written = None
    if plan.world.over_ssh:
        # Other machines get neither our environment (DS_TRAIN_CACHE) nor arguments that pdsh's
        # remote shell would take apart: they read one file that says everything.
        cache_dir = str(Path(plan.config.data.cache_dir or default_cache_dir()).resolve())
        data = plan.config.data.model_copy(update={"cache_dir": cache_dir})
        plan = replace(plan, config=plan.config.model_copy(update={"data": data}))
        written = Path(plan.config.output_dir) / LAUNCH_RECIPE
        recipe_path, overrides = written, ()
    command = launcher_command(plan.config, recipe_path, overrides, launcher_args, world=plan.world)
    return Launch(plan, command, written)


def _check_device(plan: Plan) -> None:
    """What the ranks' machines must have; other hosts can't be looked at from here."""
    if uses_nvme(plan.ds_config) and plan.world.is_local and find_library("aio") is None:
        raise ConfigError(
            "offload to nvme: DeepSpeed reads and writes through libaio, which is not installed "
            "here; install it with its headers (apt install libaio-dev), or take another preset."
        )
    kind = plan.config.model.quantization
    if kind != "none" and plan.world.is_local and plan.world.on_cpu:
        raise ConfigError(
            f"model.quantization = {kind}: needs a CUDA device, and this machine shows none; set "
            f"model.quantization: none."
        )
