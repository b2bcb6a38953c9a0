"""`ds-train train` before the launch: everything is checked and tokenised, then ranks start.

No process group exists here; a fault leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ds_train.checkpoint.checksums import set_aside_damaged
from ds_train.config.load import dump_recipe
from ds_train.config.run import RunConfig
from ds_train.curriculum.plan import build_step_plan, find_scores
from ds_train.data.prepare import prepare_data
from ds_train.data.quarantine import read_rollbacks
from ds_train.errors import CheckpointError, RunFailed
from ds_train.evaluate.task_list import open_recipe_tasks
from ds_train.launch.board import Board
from ds_train.launch.command import launcher_environment, master_port, show_command
from ds_train.launch.environment import ENV_FILE, env_file_text
from ds_train.launch.failure import Failure
from ds_train.launch.process import run_launcher
from ds_train.launch.world import World
from ds_train.model.check import check_model
from ds_train.model.files import base_fingerprint
from ds_train.paths import RunPaths
from ds_train.plan.launch import Launch
from ds_train.plan.resume import check_same_inputs, check_same_run
from ds_train.plan.validate import summary


def start_training(
    launch: Launch,
    *,
    tell_stop: bool = False,
    on_refusal: Callable[[Failure], object] | None = None,
) -> int:
    """Check the model, tokenise, launch; returns the exit code.

    `tell_stop`, `on_refusal`: see `run_launcher`.

    Raises DataError, ModelError, CheckpointError before the launch, RunFailed after it.
    """
    plan = launch.plan
    for line in [*summary(plan), *_device_note(plan.world)]:
        print(line, flush=True)
    set_aside_damaged(RunPaths(Path(plan.config.output_dir)), print)
    check_same_run(plan.config, plan.batch.global_batch_size)
    check_model(plan.config)
    if plan.config.evaluate.tasks:
        open_recipe_tasks(plan.config)  # their faults and downloads: now
    data = prepare_data(plan.config)
    scores = find_scores(plan.config, data, print)
    check_same_inputs(
        plan.config,
        base_fingerprint(plan.config.model),
        data.fingerprint,
        scores.fingerprint if scores is not None else "",
    )
    config = plan.config
    if config.curriculum or config.data.mixture or config.fewshot:
        build_step_plan(plan.config, data, scores, plan.batch.global_batch_size)  # its faults: now
    if launch.written_recipe is not None:
        _write_recipe(plan.config, launch.written_recipe)
    paths = RunPaths(Path(plan.config.output_dir))
    while True:
        num_rollbacks = len(read_rollbacks(paths))
        print("launching: " + show_command(launch.command), flush=True)
        try:
            return _launch(launch, tell_stop, on_refusal)
        except RunFailed:
            if len(read_rollbacks(paths)) == num_rollbacks:
                raise
            print("rolling back: the ranks start again from the last checkpoint", flush=True)
            set_aside_damaged(paths, print)


def _launch(launch: Launch, tell_stop: bool, on_refusal: Callable[[Failure], object] | None) -> int:
    """The launcher, from its environment to its end; see `run_launcher`."""
    plan, cluster = launch.plan, launch.plan.config.cluster
    paths = RunPaths(Path(plan.config.output_dir))
    environment = launcher_environment(plan.world, cluster.env)
    board = Board.make_ready(paths, plan.world)
    if launch.written_recipe is not None:
        env_file = launch.written_recipe.with_name(ENV_FILE).resolve()
        variables = {**cluster.env, **board.variables}
        env_file.write_text(env_file_text(variables, os.environ), encoding="utf-8")
        environment["DS_ENV_FILE"] = str(env_file)
    paths.stop.unlink(missing_ok=True)  # of a run that was killed before it could answer
    return run_launcher(
        launch.command,
        environment | board.variables,
        port=master_port(launch.command),
        is_local=not plan.world.over_ssh,
        stop_file=paths.stop if plan.world.over_ssh else None,
        tell_stop=tell_stop,
        board=board,
        hang_seconds=cluster.hang_seconds,
        on_refusal=on_refusal,
    )


def _device_note(world: World) -> list[str]:
    return ["device  no GPU here: the CPU is used (DS_ACCELERATOR=cpu)"] if world.on_cpu else []


def _write_recipe(config: RunConfig, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump_recipe(config), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f'output_dir = "{config.output_dir}": can\'t write {path.name}: {error.strerror}.'
        ) from None
