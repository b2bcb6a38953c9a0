"""On which devices a run starts: counted without torch, before anything is launched."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_train.config.cluster import ClusterConfig
from ds_train.errors import ConfigError
from ds_train.launch.hostfile import Slots, check_environment_file, filter_slots, read_hostfile

DEFAULT_HOSTFILE = "/job/hostfile"
"""Where the deepspeed launcher looks when it is given none."""


@dataclass(frozen=True)
class World:
    """The processes of a run."""

    slots: Slots
    """Host -> accelerators; one host `localhost` without a hostfile."""
    hostfile: str | None
    num_gpus_here: int
    """GPUs that this machine shows; 0 means that the ranks of this machine run on the CPU."""
    note: str | None
    """What was chosen because the recipe leaves it out."""
    per_node: bool = False
    """Whether something else starts a launcher on every host (`--no_ssh`), instead of ssh."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return sum(len(slots) for slots in self.slots.values())

    @property
    def is_local(self) -> bool:
        """Whether all ranks run on this machine, without ssh."""
        return self.hostfile is None

    @property
    def over_ssh(self) -> bool:
        """Whether the launcher starts the processes of other machines, over ssh."""
        return not self.is_local and not self.per_node

    @property
    def on_cpu(self) -> bool:
        """Whether the ranks of this machine have no GPU."""
        return self.num_gpus_here == 0


def visible_gpus(environment: dict[str, str] | None = None) -> list[int]:
    """Indices of this machine's GPUs, as CUDA_VISIBLE_DEVICES limits them.

    Raises ConfigError where that variable names devices in a way the launcher can't pass on.
    """
    environment = dict(os.environ) if environment is None else environment
    if environment.get("DS_ACCELERATOR", "").lower() == "cpu":
        return []
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    present = sorted(
        int(path.name.removeprefix("nvidia"))
        for path in Path("/dev").glob("nvidia*")
        if re.fullmatch(r"nvidia\d+", path.name)
    )
    if chosen is None or not present:
        return list(range(len(present)))
    names = [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if not all(name.isdigit() for name in names):
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES = {chosen}: the deepspeed launcher understands indices only, "
            f"such as 0,1; unset it or write indices."
        )
    return [int(name) for name in names]


def find_world(cluster: ClusterConfig, launcher_args: Sequence[str] = ()) -> World:
    """What the launcher will start, from the recipe and the arguments after `--`.

    Raises ConfigError about a bad hostfile, filter or number.
    """
    given = parse_launcher_args(launcher_args)
    gpus = visible_gpus()
    hostfile = given.hostfile or cluster.hostfile
    if hostfile is None and Path(DEFAULT_HOSTFILE).is_file():
        hostfile = DEFAULT_HOSTFILE
    per_node = given.num_gpus if given.num_gpus > 0 else cluster.processes_per_node
    note = None
    if hostfile is None:
        pool: Slots = {"localhost": gpus or list(range(per_node or 1))}
        if per_node is None and not gpus:
            note = "cluster.processes_per_node is left out and there is no GPU here: 1 assumed"
        elif per_node is None:
            note = f"cluster.processes_per_node is left out: one for each of {len(gpus)} GPUs"
    else:
        name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
        faults = [
            f for folder in (Path.home(), Path()) for f in check_environment_file(folder / name)
        ]
        if faults:
            raise ConfigError(faults)
        pool = {host: list(range(count)) for host, count in read_hostfile(hostfile).items()}
        if hostfile == DEFAULT_HOSTFILE:
            note = f"{DEFAULT_HOSTFILE} is there, and DeepSpeed takes it"
    include, exclude = given_filters(cluster, given)
    slots = filter_slots(pool, include, exclude)
    if given.num_nodes > 0:
        slots = dict(list(slots.items())[: given.num_nodes])
    if per_node is not None and not (include or exclude):
        slots = {host: _first(host, all_, per_node) for host, all_ in slots.items()}
    return World(slots, hostfile, len(gpus), note, given.no_ssh)


def given_filters(cluster: ClusterConfig, given: argparse.Namespace) -> tuple[str, str]:
    """--include and --exclude; those of the recipe where the arguments have neither."""
    if given.include or given.exclude:
        return given.include, given.exclude
    return cluster.include or "", cluster.exclude or ""


def _first(host: str, slots: list[int], count: int) -> list[int]:
    if count > len(slots):
        has = "this machine shows GPUs" if host == "localhost" else f"{host} has slots"
        raise ConfigError(
            f"cluster.processes_per_node = {count}: {has} {', '.join(map(str, slots))} only; set "
            f"it to {len(slots)} or less."
        )
    return slots[:count]


def parse_launcher_args(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of the deepspeed launcher that decide where ranks run; others are left alone.

    Raises ConfigError for one that ds-train sets itself.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-H", "--hostfile", default=None)
    parser.add_argument("-i", "--include", default="")
    parser.add_argument("-e", "--exclude", default="")
    parser.add_argument("--num_nodes", type=int, default=-1)
    parser.add_argument("--num_gpus", "--num_accelerators", type=int, default=-1)
    parser.add_argument("--master_port", type=int, default=None)
    parser.add_argument("--launcher", default="pdsh")
    parser.add_argument("--no_ssh", action="store_true")
    parser.add_argument("--ssh_port", type=int, default=None)
    for own in ("--module", "--no_python", "--autotuning"):
        if own in arguments:
            raise ConfigError(f"launcher arguments: {own} is set by ds-train itself; remove it.")
    try:
        given, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"launcher arguments: {error}.") from None
    if given.launcher != "pdsh":
        raise ConfigError(
            f"launcher arguments: --launcher {given.launcher}: it tells its processes their rank "
            "in variables that ds-train does not read; use pdsh, or let Slurm or MPI start "
            "`ds-train launch RECIPE --target per-node --run` on every machine."
        )
    if rest and not rest[0].startswith("-"):
        raise ConfigError(
            f'launcher arguments: "{rest[0]}" is no argument of the deepspeed launcher; what '
            f"stands after -- goes to it, settings of the recipe go before."
        )
    return given
