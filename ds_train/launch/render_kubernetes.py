"""What Kubernetes reads: a PyTorchJob of Kubeflow's training operator, or a TrainJob.

Every pod is a node and runs `ds-train launch --target per-node --run`, which finds its number in
the variables that the operator sets (place.py). The TrainJob comes with a TrainingRuntime of its
own, in which volumes and environment stand: the ways to override those of a shared runtime differ
between versions of Kubeflow's Trainer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

import yaml

from ds_train.errors import ConfigError

Kind = Literal["pytorchjob", "trainjob"]
GRACE_SECONDS = 600
"""How long a pod that must go may take to save; Kubernetes gives 30 s unless told otherwise."""
_SHM = "/dev/shm"  # in memory: ranks of a node talk through it
_RETRIES = 10
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?")
"""A DNS label, with room for what the operator appends to it."""


@dataclass(frozen=True)
class PodJob:
    """What a manifest is rendered from."""

    name: str
    image: str
    recipe: str
    """Path inside the container."""
    overrides: Sequence[str]
    env: dict[str, str]
    num_nodes: int
    slots: int
    on_cpu: bool = False
    workdir: str | None = None
    namespace: str | None = None
    claims: dict[str, str] = field(default_factory=dict)
    """Persistent volume claim -> where it is mounted."""


def render_kubernetes(job: PodJob, kind: Kind) -> str:
    """The manifest: YAML for `kubectl apply -f`."""
    documents = [_pytorch_job(job)] if kind == "pytorchjob" else _train_job(job)
    head = f"# ds-train launch {PurePosixPath(job.recipe).name} --target kubernetes --kind {kind}\n"
    return head + yaml.safe_dump_all(documents, sort_keys=False, width=96)


def parse_claims(texts: Sequence[str]) -> dict[str, str]:
    """Claims from `NAME:/path`. Raises ConfigError."""
    claims: dict[str, str] = {}
    for text in texts:
        name, colon, path = text.partition(":")
        if not colon or not _NAME.fullmatch(name) or not path.startswith("/") or name in claims:
            raise ConfigError(f"--claim {text}: write it like data:/data, each claim once.")
        if path.rstrip("/") in ("", _SHM):
            raise ConfigError(
                f"--claim {text}: a pod has something else at {path}; mount it elsewhere."
            )
        claims[name] = path
    return claims


def check_workdir(path: str | None) -> str | None:
    """The working folder in the container. Raises ConfigError."""
    if path is not None and not path.startswith("/"):
        raise ConfigError(f"--workdir {path}: is inside the container; write it like /work.")
    return path


def check_name(name: str) -> str:
    """A name that Kubernetes takes, made of a recipe's. Raises ConfigError."""
    made = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if not _NAME.fullmatch(made):
        raise ConfigError(f'--name "{name}": use up to 50 of a-z, 0-9 and -.')
    return made


def _metadata(job: PodJob) -> dict[str, Any]:
    found: dict[str, Any] = {"name": job.name}
    if job.namespace is not None:
        found["namespace"] = job.namespace
    return found


def _container(job: PodJob, name: str) -> dict[str, Any]:
    words = ["ds-train", "launch", job.recipe, *job.overrides]
    container: dict[str, Any] = {
        "name": name,
        "image": job.image,
        "command": [*words, "--target", "per-node", "--run", "--tell-stop"],
        "volumeMounts": [{"name": "shm", "mountPath": _SHM}],
    }
    container["volumeMounts"] += [
        {"name": claim, "mountPath": path} for claim, path in job.claims.items()
    ]
    if job.workdir is not None:
        container["workingDir"] = job.workdir
    if job.env:
        container["env"] = [{"name": name, "value": value} for name, value in job.env.items()]
    if not job.on_cpu:
        container["resources"] = {"limits": {"nvidia.com/gpu": job.slots}}
        # NCCL over RDMA pins memory
        container["securityContext"] = {"capabilities": {"add": ["IPC_LOCK"]}}
    return container


def _pod(job: PodJob, container_name: str) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    volumes += [
        {"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in job.claims
    ]
    return {
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [_container(job, container_name)],
        "volumes": volumes,
    }


def _pytorch_job(job: PodJob) -> dict[str, Any]:
    """restartPolicy ExitCode: 128 and above (stopped and saved, a rank lost) starts a pod again."""

    def replicas(number: int) -> dict[str, Any]:
        pod = {"spec": _pod(job, "pytorch")}  # the operator looks for a container of this name
        return {"replicas": number, "restartPolicy": "ExitCode", "template": pod}

    specs = {"Master": replicas(1)}
    if job.num_nodes > 1:
        specs["Worker"] = replicas(job.num_nodes - 1)
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": _metadata(job),
        "spec": {
            "runPolicy": {"cleanPodPolicy": "None", "backoffLimit": _RETRIES},
            "pytorchReplicaSpecs": specs,
        },
    }


def _train_job(job: PodJob) -> list[dict[str, Any]]:
    api = "trainer.kubeflow.org/v1alpha1"
    node = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "backoffLimit": _RETRIES,
                "template": {"spec": {"restartPolicy": "OnFailure", **_pod(job, "node")}},
            },
        },
    }
    runtime = {
        "apiVersion": api,
        "kind": "TrainingRuntime",
        "metadata": {**_metadata(job), "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": job.num_nodes, "torch": {}},
            "template": {"spec": {"replicatedJobs": [node]}},
        },
    }
    train = {
        "apiVersion": api,
        "kind": "TrainJob",
        "metadata": _metadata(job),
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": job.name,
            },
            "trainer": {"numNodes": job.num_nodes},
        },
    }
    return [runtime, train]
