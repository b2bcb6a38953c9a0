"""One launcher on every node, started by Slurm, Kubernetes, MPI or a script (`--no_ssh`)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ds_train.config.cluster import ClusterConfig
from ds_train.errors import ConfigError
from ds_train.launch.place import Place
from ds_train.launch.world import visible_gpus

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""PyTorchJob sets some of them for its pods; to ds-train they mean a training process."""


@contextmanager
def node_hostfile(num_nodes: int, slots: int) -> Iterator[str]:
    """A hostfile of so many nodes, for as long as it is needed.

    The launcher takes the number of nodes and of their slots from it; without ssh it makes no use
    of the names.
    """
    with tempfile.TemporaryDirectory(prefix="ds-train-nodes-") as folder:
        path = Path(folder) / "hostfile"
        path.write_text("".join(f"node-{node} slots={slots}\n" for node in range(num_nodes)))
        yield str(path)


def per_node_arguments(place: Place, hostfile: str) -> list[str]:
    """What the launcher of one node is told."""
    return [
        *("--hostfile", hostfile, "--no_ssh", "--node_rank", str(place.node_rank)),
        *("--master_addr", place.master_addr, "--master_port", str(place.master_port)),
    ]


def slots_here(cluster: ClusterConfig) -> int:
    """Processes of this node: those of the recipe, or one for each of its GPUs."""
    if found := cluster.processes_per_node or len(visible_gpus()):
        return found
    raise ConfigError(
        "cluster.processes_per_node: is left out, and there is no GPU here to count; set it, to "
        "the same number on every node."
    )


def check_cores(num_cores: int, slots: int) -> None:
    """Refuse fewer cores than processes that drive GPUs. Raises ConfigError.

    Slurm gives a task one core where it is not asked for more, whatever its GPUs.
    """
    if num_cores < slots:
        raise ConfigError(
            f"cluster.processes_per_node = {slots}: this node lets us use {num_cores} core"
            f"{'' if num_cores == 1 else 's'}, and every process needs one at least; ask for more "
            "(Slurm: ds-train launch ... --option=--exclusive, or --option=--cpus-per-task=N)."
        )


def check_cluster(cluster: ClusterConfig) -> None:
    """Refuse what something else decides: hosts and restarts. Raises ConfigError."""
    refuse_restarts(cluster)
    for name in ("include", "exclude"):
        if getattr(cluster, name) is not None:
            raise ConfigError(
                f"cluster.{name}: chooses hosts of a hostfile; here the scheduler chooses the "
                "nodes. Leave it out, or use --target ssh."
            )


def refuse_restarts(cluster: ClusterConfig) -> None:
    """One node of several can't start the run again for all of them. Raises ConfigError."""
    if cluster.restarts:
        raise ConfigError(
            f"cluster.restarts = {cluster.restarts}: here something else starts the nodes, and "
            "only that can start them again (launch/recovery.md says when it does); set it to 0. "
            "The run goes on from its last checkpoint all the same."
        )
