"""The deepspeed command of a run, and its environment."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from ds_train.config.run import RunConfig
from ds_train.data.workers import num_cores
from ds_train.launch.world import World, find_world, given_filters, parse_launcher_args


def launcher_command(
    config: RunConfig,
    recipe_path: str | Path,
    overrides: Sequence[str] = (),
    launcher_args: Sequence[str] = (),
    *,
    world: World | None = None,
    port: int | None = None,
    action: Literal["train", "score"] = "train",
) -> list[str]:
    """`deepspeed ... --module ds_train train recipe.yaml overrides...`.

    `world` and `port` are found when left out. The arguments of the user come last, so they win.
    """
    world = world or find_world(config.cluster, launcher_args)
    given = parse_launcher_args(launcher_args)
    filters = given_filters(config.cluster, given)
    place = _place_args(world, filtered=any(filters))
    if given.hostfile is not None:
        place = place[2:]  # it comes with the user's own arguments
    command = [*deepspeed_program(), *place]
    if any(filters) and not (given.include or given.exclude):
        command += ["--include", filters[0]] if filters[0] else ["--exclude", filters[1]]
    if config.cluster.ssh_port is not None and given.ssh_port is None and world.over_ssh:
        command += ["--ssh_port", str(config.cluster.ssh_port)]
    if given.master_port is None:
        port = port or config.cluster.master_port or free_port()
        command += ["--master_port", str(port)]
    # its "exits with return code" says no more than our own last line
    command += ["--log_level", "critical", *launcher_args]
    return [*command, "--module", "ds_train", action, str(recipe_path), *overrides]


def here_command(world: World, arguments: Sequence[str]) -> list[str]:
    """`deepspeed ... --module ds_train arguments...`, as processes of this machine."""
    place = [*deepspeed_program(), *_place_args(world, filtered=False)]
    place += ["--master_port", str(free_port()), "--log_level", "critical"]
    return [*place, "--module", "ds_train", *arguments]


def master_port(command: Sequence[str]) -> int:
    """The port in a command of `launcher_command`."""
    position = max(i for i, word in enumerate(command) if word.startswith("--master_port"))
    _, equals, value = command[position].partition("=")
    return int(value if equals else command[position + 1])


def launcher_environment(
    world: World, variables: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What the launcher inherits: the accelerator's name and threads per rank where unset.

    `variables`: those of `cluster.env`, which win. Other hosts get them from a file
    (environment.py).
    """
    environment = {**os.environ, **(variables or {})}
    if world.on_cpu:
        environment.setdefault("DS_ACCELERATOR", "cpu")
    here = max(len(slots) for slots in world.slots.values())
    environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // here)))
    return environment


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
    return port


def show_command(command: Sequence[str]) -> str:
    """The command as one would type it."""
    return shlex.join(command)


def deepspeed_program() -> list[str]:
    """The `deepspeed` script of this very Python, or the module behind it."""
    script = Path(sys.executable).parent / "deepspeed"
    return (
        [str(script)] if script.is_file() else [sys.executable, "-m", "deepspeed.launcher.runner"]
    )


def _place_args(world: World, filtered: bool) -> list[str]:
    """Where the ranks run. --num_gpus would make the launcher forget CUDA_VISIBLE_DEVICES."""
    if world.hostfile is not None:
        args = ["--hostfile", world.hostfile]
        counts = {len(slots) for slots in world.slots.values()}
        return args if filtered or len(counts) > 1 else [*args, "--num_gpus", str(counts.pop())]
    if filtered:
        return []
    slots = world.slots["localhost"]
    if not world.on_cpu and "CUDA_VISIBLE_DEVICES" in os.environ:
        return ["--include", "localhost:" + ",".join(str(slot) for slot in slots)]
    return ["--num_accelerators" if world.on_cpu else "--num_gpus", str(len(slots))]
