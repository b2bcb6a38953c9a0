"""Which node a machine is, from the variables of Slurm, Kubeflow, MPI or a script."""

from __future__ import annotations

import pytest

from ds_train.errors import ConfigError
from ds_train.launch.place import Place, expand_first, find_place

SLURM = {
    "SLURM_JOB_ID": "70012",
    "SLURM_PROCID": "1",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
}
PET = {
    "PET_NODE_RANK": "3",
    "PET_NNODES": "4",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400",
}
POD = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "job-master-0",
    "MASTER_PORT": "23456",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "MASTER_ADDR": "a",
}
HAND = {"NODE_RANK": "0", "NNODES": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29511"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SLURM, Place(1, 2, "gpu07", 20012, "Slurm")),
        ({**SLURM, "MASTER_ADDR": "ib7", "MASTER_PORT": "5555"}, Place(1, 2, "ib7", 5555, "Slurm")),
        ({**SLURM, "SLURM_STEP_NODELIST": "x9", "SLURM_STEP_NUM_NODES": "3"},
         Place(1, 3, "x9", 20012, "Slurm")),
        (PET, Place(3, 4, "job-node-0-0.job", 29400, "Kubeflow")),
        ({**POD, **PET}, Place(3, 4, "job-node-0-0.job", 29400, "Kubeflow")),
        (POD, Place(1, 2, "job-master-0", 23456, "PyTorchJob")),
        (MPI, Place(0, 2, "a", 29500, "mpirun")),
        ({**MPI, **SLURM}, Place(0, 2, "a", 29500, "mpirun")),
        ({**SLURM, **HAND}, Place(0, 2, "a", 29511, "NODE_RANK and NNODES")),
    ],
)  # fmt: skip
def test_places(environment: dict[str, str], expected: Place) -> None:
    assert find_place(environment) == expected


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu[03-05,9],login", "gpu03"),
        ("a1,a2", "a1"),
        ("rack1-gpu[001-128]-ib", "rack1-gpu001-ib"),
        ("n[9,11-12]", "n9"),
    ],
)
def test_the_first_of_slurms_list(nodelist: str, first: str) -> None:
    assert expand_first(nodelist) == first


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "no variable says which node this is"),
        # a rank of torchrun, outside a pod, is no node
        ({"RANK": "0", "WORLD_SIZE": "2"}, "no variable says which node this is"),
        ({"NODE_RANK": "0"}, "NNODES is not set"),
        ({**HAND, "NODE_RANK": "two"}, 'NODE_RANK = "two": is not a whole number'),
        ({**HAND, "NODE_RANK": "2"}, "this is node 2 of 2; nodes are counted from 0"),
        ({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, "give it --map-by ppr:1:node"),
        ({**SLURM, "SLURM_JOB_NODELIST": "a[x]"}, r"SLURM_JOB_NODELIST = a\[x\]: can't be read"),
    ],
)
def test_what_is_missing_is_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_place(environment)
