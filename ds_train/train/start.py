"""`ds-train train` before the launch: everything is checked and tokenised, then ranks start.

No process group exists here and no torch is needed; a fault leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ds_train.config.load import dump_recipe
from ds_train.config.run import RunConfig
from ds_train.data.prepare import prepare_data
from ds_train.errors import CheckpointError, ConfigError
from ds_train.launch.command import (
    is_plain,
    launcher_command,
    launcher_environment,
    master_port,
    show_command,
)
from ds_train.launch.process import run_launcher
from ds_train.launch.world import World
from ds_train.model.check import check_model
from ds_train.model.files import base_fingerprint
from ds_train.plan.resume import check_same_inputs, check_same_run
from ds_train.plan.validate import Plan, summary, validate

LAUNCH_RECIPE = "recipe.launch.yaml"
"""Recipe with its overrides applied, in the run folder, where arguments can't carry them."""


def start_training(
    recipe_path: str | Path,
    overrides: Sequence[str] = (),
    launcher_args: Sequence[str] = (),
    *,
    dry_run: bool = False,
) -> int:
    """Check, tokenise, launch; returns the exit code. With `dry_run` only the command is printed.

    Raises ConfigError, DataError, ModelError before the launch, RunFailed after it.
    """
    plan = validate(recipe_path, overrides, launcher_args)
    _check_device(plan)
    written = not plan.world.is_local and not is_plain([str(recipe_path), *overrides])
    if written:
        recipe_path, overrides = Path(plan.config.output_dir) / LAUNCH_RECIPE, ()
    command = launcher_command(plan.config, recipe_path, overrides, launcher_args, world=plan.world)
    if dry_run:
        print(show_command(command))
        return 0
    for line in [*summary(plan), *_device_note(plan.world)]:
        print(line, flush=True)
    check_same_run(plan.config, plan.batch.global_batch_size)
    check_model(plan.config)
    data = prepare_data(plan.config)
    check_same_inputs(plan.config, base_fingerprint(plan.config.model), data.fingerprint)
    if written:
        _write_recipe(plan.config, Path(recipe_path))
    print("launching: " + show_command(command), flush=True)
    return run_launcher(
        command,
        launcher_environment(plan.world),
        port=master_port(command),
        is_local=plan.world.is_local,
    )


def _device_note(world: World) -> list[str]:
    return ["device  no GPU here: the CPU is used (DS_ACCELERATOR=cpu)"] if world.on_cpu else []


def _check_device(plan: Plan) -> None:
    """bitsandbytes needs CUDA where the ranks are; other hosts can't be looked at from here."""
    kind = plan.config.model.quantization
    if kind != "none" and plan.world.is_local and plan.world.on_cpu:
        raise ConfigError(
            f"model.quantization = {kind}: needs a CUDA device, and this machine shows none; set "
            f"model.quantization: none."
        )


def _write_recipe(config: RunConfig, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump_recipe(config), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f'output_dir = "{config.output_dir}": can\'t write {path.name}: {error.strerror}.'
        ) from None
