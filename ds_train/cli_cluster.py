"""Options of the commands that are about several machines."""

from __future__ import annotations

import argparse
from collections.abc import Callable

TARGETS = ("ssh", "per-node", "slurm", "kubernetes", "mpi")


CLUSTER_OPTIONS = (
    *("nodes", "gpus", "gpu_memory", "intra", "inter", "host_memory", "host_link", "nvme"),
)
"""What describes machines on the command line."""


def add_cluster_arguments(parser: argparse.ArgumentParser, count: Callable[[str], int]) -> None:
    """Options that say what the machines are."""
    parser.add_argument(
        "--cluster", metavar="NAME|FILE", help="of ds_configs/clusters/, or a file like these"
    )
    parser.add_argument("--nodes", type=count, help="machines")
    parser.add_argument("--gpus", type=count, help="of each machine")
    parser.add_argument("--gpu-memory", metavar="80GiB", help="of one GPU")
    parser.add_argument(
        "--intra", metavar="900GB/s", help="link of a GPU inside its node, both ways together"
    )
    parser.add_argument(
        "--inter", metavar="50GB/s", help="network of a node for each of its GPUs, each way"
    )
    parser.add_argument("--host-memory", metavar="1TiB", help="of one machine")
    parser.add_argument(
        "--host-link", metavar="32GB/s", help="between a GPU and its host, each way"
    )
    parser.add_argument("--nvme", metavar="6GB/s", help="disks of a node, reading or writing")


def add_tune_arguments(parser: argparse.ArgumentParser, count: Callable[[str], int]) -> None:
    """Options of `ds-train tune`."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--output", metavar="FILE", help="the new recipe; NAME.tuned.yaml if left out"
    )
    where.add_argument("--in-place", action="store_true", help="change the recipe itself")
    parser.add_argument(
        "--trials", type=count, default=12, metavar="N", help="settings to try (default 12)"
    )
    parser.add_argument(
        "--steps", type=count, default=6, metavar="N", help="steps that count of each (default 6)"
    )
    parser.add_argument(
        "--rounds",
        type=count,
        default=3,
        metavar="N",
        help="of the recipe against the best, in turns, at the end (default 3)",
    )
    parser.add_argument(
        "--minutes", type=count, default=10, metavar="N", help="a trial may take (default 10)"
    )


def add_launch_arguments(parser: argparse.ArgumentParser, count: Callable[[str], int]) -> None:
    """Options of `ds-train launch`. `count` reads a whole number of at least 1."""
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
        help="per-node: end with 128 + signal, not 0, when stopped and saved (for Kubernetes)",
    )
    parser.add_argument("--name", help="of the job; the recipe's if left out")
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


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `ds-train doctor`."""
    parser.add_argument(
        "--hostfile", metavar="FILE", help="the hosts; the recipe's if left out, else this machine"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything that was found out there")
    parser.add_argument(
        "--need-disk",
        metavar="SIZE",
        help="free space of the output folder, as in 500GB; the checkpoints' if left out",
    )
    parser.add_argument(
        "--no-all-reduce", action="store_true", help="start no processes; a few seconds in all"
    )
