"""Manifests hold nothing but what the APIs have, with the right types, and what the recipe says.

`SCHEMA` is written by hand after the fields of kubeflow.org/v1 PyTorchJob, of
trainer.kubeflow.org/v1alpha1 TrainJob and TrainingRuntime, of JobSet and of the pod; a key that it
does not name is a fault.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ds_train.cli import main

REPO = Path(__file__).resolve().parents[2]
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
META = {"name!": NAME, "namespace": NAME, "labels": {"*": str}}
CONTAINER = {
    "name!": NAME,
    "image!": str,
    "command": [str],
    "workingDir": str,
    "env": [{"name!": str, "value!": str}],
    "volumeMounts": [{"name!": NAME, "mountPath!": str}],
    "resources": {"limits": {"nvidia.com/gpu": int}},
    "securityContext": {"capabilities": {"add": [str]}},
}
POD = {
    "restartPolicy": re.compile("OnFailure|Never"),
    "terminationGracePeriodSeconds": int,
    "containers!": [CONTAINER],
    "volumes": [
        {
            "name!": NAME,
            "emptyDir": {"medium": re.compile("Memory")},
            "persistentVolumeClaim": {"claimName!": NAME},
        }
    ],
}
REPLICAS = {
    "replicas!": int,
    "restartPolicy!": re.compile("Always|OnFailure|Never|ExitCode"),
    "template!": {"spec!": POD},
}
JOB = {
    "metadata": {"labels": {"*": str}},
    "spec!": {"backoffLimit": int, "template!": {"spec!": POD}},
}
TRAINER = re.compile("trainer.kubeflow.org/v1alpha1")
SCHEMA: dict[str, Any] = {
    "PyTorchJob": {
        "apiVersion!": re.compile("kubeflow.org/v1"),
        "kind!": str,
        "metadata!": META,
        "spec!": {
            "runPolicy": {"cleanPodPolicy": re.compile("None|Running|All"), "backoffLimit": int},
            "pytorchReplicaSpecs!": {"Master!": REPLICAS, "Worker": REPLICAS},
        },
    },
    "TrainingRuntime": {
        "apiVersion!": TRAINER,
        "kind!": str,
        "metadata!": META,
        "spec!": {
            "mlPolicy!": {"numNodes!": int, "torch!": {}},
            "template!": {"spec!": {"replicatedJobs!": [{"name!": NAME, "template!": JOB}]}},
        },
    },
    "TrainJob": {
        "apiVersion!": TRAINER,
        "kind!": str,
        "metadata!": META,
        "spec!": {
            "runtimeRef!": {"apiGroup!": str, "kind!": str, "name!": NAME},
            "trainer": {"numNodes": int},
        },
    },
}


def faults(value: Any, schema: Any, place: str = "") -> list[str]:
    """What in a manifest is not as the schema says. `key!` must be there; `*` is any key."""
    if isinstance(schema, re.Pattern):
        good = isinstance(value, str) and schema.fullmatch(value)
        return [] if good else [f"{place}: {value!r}"]
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{place}: {value!r} is no {schema.__name__}"]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{place}: is no list, or empty"]
        return [f for i, item in enumerate(value) for f in faults(item, schema[0], f"{place}[{i}]")]
    if not isinstance(value, dict):
        return [f"{place}: is no object"]
    known = {key.rstrip("!"): inner for key, inner in schema.items()}
    found = [
        f"{place}.{key[:-1]}: is missing"
        for key in schema
        if key[-1:] == "!" and key[:-1] not in value
    ]
    for key, inner in value.items():
        if key not in known and "*" not in known:
            found.append(f"{place}.{key}: no such field")
        else:
            found += faults(inner, known.get(key, known.get("*")), f"{place}.{key}")
    return found


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its files are in the container, not here."""
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.chdir(tmp_path)
    content = {
        "output_dir": "runs/first",
        "model": {"name_or_path": "/work/model"},
        "data": {"train": [{"path": "/work/rows.jsonl"}], "max_length": 64},
        "train": {"global_batch_size": 32, "per_device_train_batch_size": 1, "max_steps": 20},
        "cluster": {"processes_per_node": 4, "env": {"NCCL_DEBUG": "WARN"}},
    }
    Path("My_run.yaml").write_text(yaml.safe_dump(content))
    return "My_run.yaml"


def render(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    code = main(["launch", "--target", "kubernetes", *arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return list(yaml.safe_load_all(captured.out))


OPTIONS = ["--nodes", "4", "--image", "repo/ds-train:1", "--claim", "work:/work"]


@pytest.mark.parametrize("kind", ["pytorchjob", "trainjob"])
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--namespace", "lab", "--workdir", "/work", "--claim", "models:/models", "--name", "x"],
        ["cluster.env.DS_ACCELERATOR=cpu"],
        ["--nodes", "1"],
    ],
)
def test_every_field_is_one_of_the_api(recipe: str, capsys, kind: str, more: list[str]) -> None:
    overrides = [word for word in more if "=" in word]
    options = [word for word in more if "=" not in word]
    documents = render(capsys, recipe, *overrides, *OPTIONS, *options, "--kind", kind)
    kinds = ["PyTorchJob"] if kind == "pytorchjob" else ["TrainingRuntime", "TrainJob"]
    assert [document["kind"] for document in documents] == kinds
    for document in documents:
        assert faults(document, SCHEMA[document["kind"]]) == []
        for pod in pods(document):
            mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    if document["kind"] == "PyTorchJob":
        specs = document["spec"]["pytorchReplicaSpecs"]
        return [replicas["template"]["spec"] for replicas in specs.values()]
    if document["kind"] == "TrainingRuntime":
        jobs = document["spec"]["template"]["spec"]["replicatedJobs"]
        return [job["template"]["spec"]["template"]["spec"] for job in jobs]
    return []


def test_the_schema_finds_faults(recipe: str, capsys) -> None:
    (document,) = render(capsys, recipe, *OPTIONS)
    spec = document["spec"]["pytorchReplicaSpecs"]
    spec["Master"]["replica"] = 1
    spec["Worker"]["replicas"] = "3"
    del spec["Master"]["template"]["spec"]["containers"][0]["image"]
    document["metadata"]["name"] = "My_run"
    assert faults(document, SCHEMA["PyTorchJob"]) == [
        ".metadata.name: 'My_run'",
        ".spec.pytorchReplicaSpecs.Master.template.spec.containers[0].image: is missing",
        ".spec.pytorchReplicaSpecs.Master.replica: no such field",
        ".spec.pytorchReplicaSpecs.Worker.replicas: '3' is no int",
    ]


def test_what_a_pod_does(recipe: str, capsys) -> None:
    (document,) = render(capsys, recipe, "train.seed=3", *OPTIONS)
    specs = document["spec"]["pytorchReplicaSpecs"]
    assert document["metadata"]["name"] == "my-run"
    assert (specs["Master"]["replicas"], specs["Worker"]["replicas"]) == (1, 3)
    assert specs["Master"]["restartPolicy"] == "ExitCode"
    (container,) = specs["Worker"]["template"]["spec"]["containers"]
    assert container["name"] == "pytorch", "the operator looks for that name"
    assert " ".join(container["command"]) == (
        "ds-train launch My_run.yaml train.seed=3 --target per-node --run --tell-stop"
    )
    assert container["env"] == [{"name": "NCCL_DEBUG", "value": "WARN"}]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 4}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nodes", "4"], "--image: --target kubernetes needs it"),
        (["--image", "x"], "--nodes: --target kubernetes needs it"),
        ([*OPTIONS, "--claim", "data"], "--claim data: write it like data:/data, each claim once."),
        ([*OPTIONS, "--claim", "work:/x"], "--claim work:/x: write it like"),
        ([*OPTIONS, "--claim", "m:/dev/shm/"], "--claim m:/dev/shm/: a pod has something else at"),
        ([*OPTIONS, "--workdir", "work"], "--workdir work: is inside the container; write it like"),
        ([*OPTIONS, "--name", "___"], '--name "___": use up to 50 of a-z, 0-9 and -.'),
        ([*OPTIONS, "--time", "1:00"], "--time: is for --target slurm; leave it out."),
        ([*OPTIONS, "--run"], "--run: write the manifest with --output and give it to kubectl"),
        ([*OPTIONS, "train.global_batch_size=33"], "does not divide into 16 processes"),
    ],
)
def test_messages(recipe: str, capsys, arguments: list[str], words: str) -> None:
    assert main(["launch", recipe, "--target", "kubernetes", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_what_the_image_copies_is_there() -> None:
    """And that its instructions are Docker's: nothing here can build it."""
    text = (REPO / "launch" / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", text)).splitlines()
    instructions = [line.split(None, 1) for line in lines if line.strip()]
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions} <= known
    assert [name for name, _ in instructions][:2] == ["ARG", "FROM"]
    for name, rest in instructions:
        if name == "COPY":
            *sources, _ = rest.split()
            for source in sources:
                assert (REPO / source).exists(), source
