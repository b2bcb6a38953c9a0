"""Which node this machine is, where something else starts one process on every node of a run.

Slurm, Kubeflow and MPI each tell it in variables of their own; one's own script says NODE_RANK,
NNODES, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ds_train.errors import ConfigError

DEFAULT_PORT = 29500

_HELP = (
    "Slurm (srun), Kubeflow (PyTorchJob, TrainJob) and mpirun set them; by hand give NODE_RANK, "
    "NNODES, MASTER_ADDR and MASTER_PORT."
)


@dataclass(frozen=True)
class Place:
    """This machine among the nodes of a run."""

    node_rank: int
    """From 0; node 0 holds rank 0."""
    num_nodes: int
    master_addr: str
    """Name or address of node 0, as the others reach it."""
    master_port: int
    """The same on every node."""
    source: str
    """Who said so, for people."""


def find_place(environment: Mapping[str, str]) -> Place:
    """This node, from the variables of whoever started it. Raises ConfigError where they lack."""
    for is_it, read in _SOURCES:
        if is_it(environment):
            place = read(environment)
            if not 0 <= place.node_rank < place.num_nodes:
                raise ConfigError(
                    f"{place.source}: this is node {place.node_rank} of {place.num_nodes}; nodes "
                    "are counted from 0."
                )
            return place
    raise ConfigError(f"--target per-node: no variable says which node this is. {_HELP}")


def expand_first(nodelist: str) -> str:
    """First host of Slurm's list: `gpu[03-05,9],login` gives gpu03."""
    match = re.fullmatch(r"([^\[\],]+)(?:\[(\d+)[^\]]*\]([^\[\],]*))?(?:,.*)?", nodelist)
    if match is None:
        raise ConfigError(
            f"SLURM_JOB_NODELIST = {nodelist}: can't be read; give MASTER_ADDR, the name of node 0."
        )
    return match[1] + (match[2] or "") + (match[3] or "")


def _slurm(environment: Mapping[str, str]) -> Place:
    """Node 0 is the first of the job's list; the port follows the job, for nodes that two share."""
    num = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_JOB_NUM_NODES")
    nodelist = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    address = environment.get("MASTER_ADDR") or expand_first(nodelist or "")
    job = _number(environment, "SLURM_JOB_ID")
    port = environment.get("MASTER_PORT") or str(20000 + job % 10000)
    return Place(
        _number(environment, "SLURM_NODEID"),
        _number({"SLURM_JOB_NUM_NODES": num or ""}, "SLURM_JOB_NUM_NODES"),
        address,
        _number({"MASTER_PORT": port}, "MASTER_PORT"),
        "Slurm",
    )


def _named(
    source: str, rank: str, num_nodes: str, prefix: str = ""
) -> Callable[[Mapping[str, str]], Place]:
    """A source whose variables say all of it under these names, the address's after `prefix`."""

    def read(environment: Mapping[str, str]) -> Place:
        return Place(
            _number(environment, rank),
            _number(environment, num_nodes),
            _text(environment, f"{prefix}MASTER_ADDR"),
            _number(environment, f"{prefix}MASTER_PORT"),
            source,
        )

    return read


def _mpi(environment: Mapping[str, str]) -> Place:
    """Open MPI with one process a node; the address of node 0 is not among its variables."""
    if _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE") != 1:
        raise ConfigError(
            "mpirun: started more than one process on this node; give it --map-by ppr:1:node, as "
            "the deepspeed launcher starts the ranks."
        )
    return Place(
        _number(environment, "OMPI_COMM_WORLD_RANK"),
        _number(environment, "OMPI_COMM_WORLD_SIZE"),
        _text(environment, "MASTER_ADDR"),
        _number({"MASTER_PORT": environment.get("MASTER_PORT", str(DEFAULT_PORT))}, "MASTER_PORT"),
        "mpirun",
    )


_Source = tuple[Callable[[Mapping[str, str]], bool], Callable[[Mapping[str, str]], Place]]
_SOURCES: list[_Source] = [
    # what somebody wrote by hand wins over what happens to be set around it
    (
        lambda e: "NODE_RANK" in e and "PET_NODE_RANK" not in e,
        _named("NODE_RANK and NNODES", "NODE_RANK", "NNODES"),
    ),
    (lambda e: "OMPI_COMM_WORLD_RANK" in e, _mpi),
    # TrainJob, and PyTorchJob of training operators since 1.7: torchrun's own variables
    (lambda e: "PET_NODE_RANK" in e, _named("Kubeflow", "PET_NODE_RANK", "PET_NNODES", "PET_")),
    (lambda e: "SLURM_NODEID" in e and "SLURM_PROCID" in e, _slurm),
    (
        lambda e: "KUBERNETES_SERVICE_HOST" in e and "RANK" in e,
        # without PET_ variables: these count its pods
        _named("PyTorchJob", "RANK", "WORLD_SIZE"),
    ),
]


def _text(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "").strip()
    if not value:
        raise ConfigError(f"--target per-node: {name} is not set. {_HELP}")
    return value


def _number(environment: Mapping[str, str], name: str) -> int:
    value = _text(environment, name)
    if not value.isdecimal():
        raise ConfigError(f'--target per-node: {name} = "{value}": is not a whole number.')
    return int(value)
