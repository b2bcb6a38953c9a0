"""What machines a recipe is planned for: options of `ds-train plan` and `ds-train tune`."""

from __future__ import annotations

import argparse

from ds_train.commands.values import count

CLUSTER_OPTIONS = (
    *("nodes", "gpus", "gpu_memory", "intra", "inter", "host_memory", "host_link", "nvme"),
)
"""Those that describe machines; --cluster names a file that does."""


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
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
