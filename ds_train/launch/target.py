"""`ds-train launch`: a recipe checked for so many nodes, and the file that their cluster reads."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError, RunFailed
from ds_train.launch.hostfile import filter_slots, read_hostfile
from ds_train.launch.per_node import check_cluster, node_hostfile, refuse_restarts
from ds_train.launch.render import (
    STOP_SECONDS,
    Job,
    render_mpi,
    render_per_node,
    render_slurm,
    render_ssh,
)
from ds_train.launch.render_kubernetes import (
    PodJob,
    check_name,
    check_workdir,
    parse_claims,
    render_kubernetes,
)
from ds_train.paths import replace_text
from ds_train.plan.batch import batch_arithmetic
from ds_train.plan.ds_config import resolve_ds_config
from ds_train.plan.rules import check_rules
from ds_train.plan.validate import validate

_RENDER = {
    "ssh": render_ssh,
    "per-node": render_per_node,
    "slurm": render_slurm,
    "mpi": render_mpi,
}
_OPTIONS = {
    "nodes": ("slurm", "per-node", "kubernetes"),
    "kind": ("kubernetes",),
    "image": ("kubernetes",),
    "namespace": ("kubernetes",),
    "workdir": ("kubernetes",),
    "claim": ("kubernetes",),
    "tell_stop": ("per-node",),
    "time": ("slurm",),
    "partition": ("slurm",),
    "stop_seconds": ("slurm",),
    "option": ("slurm", "mpi"),
}
"""Which targets an option is for."""


def render_target(args: argparse.Namespace) -> str:
    """The file of `--target`, for a recipe that passed every check. Raises ConfigError."""
    check_options(args)
    if args.target == "kubernetes":
        return render_kubernetes(make_pod_job(args), args.kind or "pytorchjob")
    job = make_job(args)
    return _RENDER[args.target](job)


def check_options(args: argparse.Namespace) -> None:
    """Refuse an option that the target has no use for, instead of forgetting it."""
    for name, targets in _OPTIONS.items():
        if getattr(args, name) and args.target not in targets:
            raise ConfigError(
                f"--{name.replace('_', '-')}: is for --target {' or '.join(targets)}; leave it out."
            )


def make_job(args: argparse.Namespace) -> Job:
    """What the scripts are rendered from. Raises ConfigError with every fault of the recipe."""
    config = load_recipe(args.recipe, args.overrides)
    if args.target != "ssh":
        refuse_restarts(config.cluster)
    hosts = hosts_of(config, args.target)
    num_nodes = len(hosts) or args.nodes
    if not num_nodes:
        raise ConfigError(f"--nodes: --target {args.target} must know on how many nodes; give it.")
    slots = num_slots(config, bool(hosts))
    overrides = [*args.overrides]
    if args.target == "mpi":
        # a node of mpirun has no use for the hostfile: what follows from it is said here
        overrides += [f"cluster.processes_per_node={slots}"]
        overrides += [
            f"cluster.{n}=null" for n in ("include", "exclude") if getattr(config.cluster, n)
        ]
    if not hosts:
        check_cluster(config.cluster)
        with node_hostfile(num_nodes, slots) as hostfile:
            validate(args.recipe, args.overrides, ["--hostfile", hostfile, "--no_ssh"])
    else:
        validate(args.recipe, args.overrides)
    return Job(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", args.name or Path(args.recipe).stem),
        recipe=str(Path(args.recipe).resolve()),
        overrides=overrides,
        python=sys.executable,
        folder=str(Path.cwd()),
        env=config.cluster.env,
        num_nodes=num_nodes,
        slots=slots,
        on_cpu=on_cpu(config),
        time=args.time,
        partition=args.partition,
        options=args.option,
        stop_seconds=args.stop_seconds or STOP_SECONDS,
        hosts=hosts,
    )


def make_pod_job(args: argparse.Namespace) -> PodJob:
    """What a manifest is rendered from. Raises ConfigError.

    Paths are those inside the container, so files are not looked for here.
    """
    config = load_recipe(args.recipe, args.overrides)
    for name in ("nodes", "image"):
        if not getattr(args, name):
            raise ConfigError(f"--{name}: --target kubernetes needs it; see launch/kubernetes.md.")
    slots = num_slots(config, False)
    check_cluster(config.cluster)
    world_size = args.nodes * slots
    faults = check_rules(config, world_size)
    try:
        resolve_ds_config(config, batch_arithmetic(config, world_size))
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    return PodJob(
        name=check_name(args.name or Path(args.recipe).stem),
        image=args.image,
        recipe=args.recipe,
        overrides=args.overrides,
        env=config.cluster.env,
        num_nodes=args.nodes,
        slots=slots,
        on_cpu=on_cpu(config),
        workdir=check_workdir(args.workdir),
        namespace=args.namespace,
        claims=parse_claims(args.claim),
    )


def hosts_of(config: RunConfig, target: str) -> list[str]:
    """The hosts of the recipe's hostfile, where the target needs their names; else none."""
    if target not in ("ssh", "mpi"):
        return []
    cluster = config.cluster
    if cluster.hostfile is None:
        raise ConfigError(
            f"cluster.hostfile: --target {target} must know the hosts; name a file with lines like "
            "worker-0 slots=8."
        )
    pool = {host: list(range(count)) for host, count in read_hostfile(cluster.hostfile).items()}
    slots = filter_slots(pool, cluster.include or "", cluster.exclude or "")
    if target == "mpi" and len({len(some) for some in slots.values()}) > 1:
        raise ConfigError(
            "cluster.hostfile: --target mpi needs the same number of slots on every host; exclude "
            "those with fewer, or use --target ssh."
        )
    return list(slots)


def num_slots(config: RunConfig, from_hostfile: bool) -> int:
    """Processes of each node, which is not this machine: its GPUs can't be counted from here."""
    cluster = config.cluster
    if cluster.processes_per_node is not None:
        return cluster.processes_per_node
    if from_hostfile and cluster.hostfile is not None:
        return max(read_hostfile(cluster.hostfile).values())
    raise ConfigError(
        "cluster.processes_per_node: is left out, and the nodes are not this machine; say how many "
        "GPUs each of them gives."
    )


def on_cpu(config: RunConfig) -> bool:
    """Whether the nodes have no GPU, as `cluster.env` or this machine's environment says."""
    chosen = config.cluster.env.get("DS_ACCELERATOR", os.environ.get("DS_ACCELERATOR", ""))
    return chosen.lower() == "cpu"


def write_output(text: str, output: str, *, executable: bool) -> None:
    """The rendered file, in one move. Raises ConfigError where it can't be written."""
    path = Path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)
        if executable:
            path.chmod(path.stat().st_mode | 0o111)
    except OSError as error:
        raise ConfigError(f"--output = {output}: {error.strerror}.") from None


def run_script(target: str, path: Path) -> int:
    """Submit to Slurm, or run mpirun's script; the exit code. Raises ConfigError, RunFailed."""
    command = {"slurm": ["sbatch", str(path)], "mpi": ["bash", str(path)]}[target]
    program = {"slurm": "sbatch", "mpi": "mpirun"}[target]
    if shutil.which(program) is None:
        raise ConfigError(f"--run: there is no {program} here; write the file with --output.")
    print(f"$ {' '.join(command)}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise RunFailed(f"--run: {program} ended with exit code {code}; see above.")
    return 0


def launch_faults(target: str, run: bool, launcher_args: Sequence[str]) -> None:
    """Refuse combinations that can't be done. Raises ConfigError."""
    if run and target == "kubernetes":
        raise ConfigError("--run: write the manifest with --output and give it to kubectl apply.")
    if launcher_args and target not in ("ssh",):
        raise ConfigError(
            "launcher arguments: only --target ssh passes them on; put them into the recipe's "
            "cluster section."
        )
