"""`ds-train launch`: what a cluster reads to start a recipe, or the start itself."""

from __future__ import annotations

import argparse

from ds_train.commands.common import Commands, add_command, add_recipe_arguments
from ds_train.commands.values import count

TARGETS = ("ssh", "per-node", "slurm", "kubernetes", "mpi")


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "launch",
        run,
        "write what a cluster reads to start a recipe, or start it: ssh, Slurm, Kubernetes, MPI",
        "ds-train launch my.yaml --target slurm --nodes 4 --time 12:00:00 --output my.sbatch\n"
        "ds-train launch my.yaml --target per-node --run     on every node: srun, a pod",
    )
    add_recipe_arguments(parser)
    _add_launch_arguments(parser)


def _add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `ds-train launch`."""
    parser.add_argument("--target", choices=TARGETS, required=True, help="who starts the processes")
    parser.add_argument("--output", metavar="FILE", help="write it there; printed if left out")
    parser.add_argument(
        "--run", action="store_true", help="start it now (ssh, per-node, mpi), or submit it (slurm)"
    )
    parser.add_argument(
        "--nodes", type=count, metavar="N", help="on how many; ssh and mpi read the hostfile"
    )
    parser.add_argument(
        "--tell-stop",
        action="store_true",
        help="per-node: end with 128 + signal when stopped and saved (not 0), and when a rank was "
        "lost or hung (not 1): for Kubernetes, which starts such a pod again",
    )
    parser.add_argument("--name", help="of the job; the recipe's if left out")
    _add_queue_arguments(parser)
    _add_kubernetes_arguments(parser)


def _add_queue_arguments(parser: argparse.ArgumentParser) -> None:
    slurm = parser.add_argument_group("slurm, mpi")
    slurm.add_argument("--time", metavar="D-HH:MM:SS", help="slurm: limit of the job")
    slurm.add_argument("--partition", help="slurm: where it queues")
    slurm.add_argument(
        "--stop-seconds",
        type=count,
        metavar="N",
        help="slurm: so long before the limit the run saves and queues again (default 300)",
    )
    slurm.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="--x=y",
        help="further option of sbatch or mpirun, as in --option=--account=lab; may be repeated",
    )


def _add_kubernetes_arguments(parser: argparse.ArgumentParser) -> None:
    pods = parser.add_argument_group("kubernetes")
    pods.add_argument(
        "--kind", choices=["pytorchjob", "trainjob"], help="of manifest (default pytorchjob)"
    )
    pods.add_argument("--image", help="that has ds-train; see launch/Dockerfile")
    pods.add_argument("--namespace", help="the current one if left out")
    pods.add_argument("--workdir", metavar="DIR", help="working folder inside the container")
    pods.add_argument(
        "--claim",
        action="append",
        default=[],
        metavar="NAME:/PATH",
        help="persistent volume claim and where it is mounted; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    from ds_train.train.launch import launch_command

    return launch_command(args)
