"""What is made of facts: each kind of failure names its hosts, and whole hosts have none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from ds_train.doctor.allreduce import look_again, rounds
from ds_train.doctor.collective import judge_collective, judge_pairs, read_collective
from ds_train.doctor.finding import Finding
from ds_train.doctor.gather import HostReport, Needs
from ds_train.doctor.judge_machines import judge_machines
from ds_train.doctor.judge_network import judge_network
from ds_train.doctor.table import lines

GIB = 2**30
GPU = {
    "index": 0, "name": "H100", "uuid": "GPU-a", "driver": "570.1", "total_mib": 81559,
    "used_mib": 1, "ecc": 0, "processes": [],
}  # fmt: skip
FACTS: dict[str, Any] = {
    "hostname": "w",
    "python": "3.11.7",
    "executable": "/venv/bin/python",
    "versions": dict.fromkeys(("torch", "deepspeed", "ds-train", "transformers", "peft"), "1.0"),
    "code": "abc",
    "torch_cuda": "12.8",
    "nccl": "2.27",
    "gpus": {"devices": [GPU, {**GPU, "index": 1, "uuid": "GPU-b"}], "present": 2, "error": None},
    "cuda_home": {"home": "/usr/local/cuda", "nvcc": "x", "version": "12.4"},
    "compiler": {"path": "/usr/bin/c++", "version": "12.2.0"},
    "ninja": "/venv/bin/ninja",
    "memlock": -1,
    "rdma": True,
    "nofile": 65536,
    "shm": {"total": 64 * GIB, "free": 64 * GIB, "left_over": 0},
    "build_locks": [],
    "resolved": {f"w{i}": [f"10.0.0.{i}"] for i in range(4)},
    "own_address": ["10.0.0.9"],
    "first_address": "10.0.0.9",
    "paths": {"model.name_or_path": {"readable": True, "bytes": 5, "files": 1}},
    "folders": {"/run": {"place": "/run", "free": 100 * GIB, "error": None}},
    "chosen": {},
}
NEEDS = Needs(
    reads={"model.name_or_path": "/model"}, output_dir="/run", disk_bytes=GIB, master_port=29500
)


def cluster() -> list[HostReport]:
    """Four hosts without a fault."""
    names = [f"w{i}" for i in range(4)]
    return [
        HostReport(
            name,
            facts=copy.deepcopy(FACTS),
            skew_seconds=0.01,
            interfaces={"ib0": {"mtu": 4092, "address": f"10.0.0.{i}"}},
            route=f"10.0.0.{i}",
            links={other: {"microseconds": 50.0} for other in names if other != name},
        )
        for i, name in enumerate(names)
    ]


def judge(reports: list[HostReport]) -> list[Finding]:
    return [*judge_network(reports, NEEDS), *judge_machines(reports, NEEDS)]


def failures(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings if finding.status == "fail"}


def test_whole_hosts() -> None:
    findings = judge(cluster())
    assert failures(findings) == {}
    text = "\n".join(lines(findings))
    assert "2 x H100 on each host" in text
    assert "4092 on every host" in text


def facts(report: HostReport) -> dict[str, Any]:
    assert report.facts is not None
    return report.facts


def gpu(report: HostReport, **changes: Any) -> None:
    facts(report)["gpus"]["devices"][1].update(changes)


Break = Callable[[HostReport], object]
FAULTS: list[tuple[Break, str, str]] = [
    (lambda r: facts(r)["versions"].update(torch="2.0"), "torch", "2.0 on w2, 1.0 elsewhere"),
    (lambda r: facts(r)["versions"].update(torch=None), "torch", "is not installed"),
    (lambda r: facts(r).update(code="xyz"), "ds-train code", "xyz on w2, abc elsewhere"),
    (lambda r: facts(r).update(torch_cuda=""), "CUDA of torch", "CPU build on w2, 12.8 elsewhere"),
    (lambda r: facts(r).update(nccl="2.20"), "NCCL", "2.20 on w2"),
    (lambda r: [d.update(driver="535") for d in facts(r)["gpus"]["devices"]], "driver", "535 on"),
    (
        lambda r: facts(r)["cuda_home"].update(version="11.8"),
        "CUDA toolkit",
        "CUDA_HOME has CUDA 11.8, torch is built for 12.8",
    ),
    (lambda r: facts(r).update(compiler=None), "compiler", "none found"),
    (lambda r: facts(r).update(ninja=None), "ninja", "none found"),
    (
        lambda r: facts(r).update(build_locks=[{"path": "/x/lock", "seconds": 3600.0}]),
        "extension lock",
        "/x/lock is left of a build that was killed",
    ),
    (lambda r: facts(r)["gpus"].update(error="mismatch"), "GPUs", "nvidia-smi fails: mismatch"),
    (lambda r: facts(r)["gpus"].update(present=8), "GPUs", "6 of 8 are lost to the driver"),
    (lambda r: facts(r)["gpus"]["devices"].pop(), "GPUs", "1 on w2, 2 elsewhere"),
    (lambda r: gpu(r, ecc=2), "GPU memory", "GPU 1: 2 uncorrected ECC errors"),
    (lambda r: gpu(r, used_mib=9000), "GPU in use", "9000 MiB are taken by a process that is not"),
    (
        lambda r: gpu(r, processes=[{"pid": 7, "mib": 90, "name": "vllm"}]),
        "GPU in use",
        "GPU 1: vllm (pid 7, 90 MiB)",
    ),
    (
        lambda r: facts(r)["shm"].update(free=2**26, left_over=3),
        "shared memory",
        "3 buffers of ended runs lie there",
    ),
    (lambda r: facts(r).update(memlock=65536), "memory lock", "ulimit -l is 64.00 KiB"),
    (lambda r: facts(r)["paths"].update({"model.name_or_path": None}), "files", "is not there"),
    (
        lambda r: facts(r)["paths"]["model.name_or_path"].update(bytes=6),
        "files",
        "6 bytes on w2, 5 bytes elsewhere",
    ),
    (lambda r: facts(r)["folders"]["/run"].update(free=5), "free disk", "5 B free, the run needs"),
    (lambda r: setattr(r, "token_error", "Read-only"), "output folder", "/run: Read-only"),
    (lambda r: setattr(r, "missing", ["w0", "w1", "w3"]), "output folder", "is another folder"),
    (lambda r: setattr(r, "skew_seconds", -60.0), "clock", "60.0 s behind the others"),
    (lambda r: r.interfaces["ib0"].update(mtu=1500), "MTU", "1500 on w2 (ib0), 4092 elsewhere"),
    (
        lambda r: facts(r)["chosen"].update(NCCL_SOCKET_IFNAME="eth"),
        "interface",
        "NCCL_SOCKET_IFNAME = eth: there is ib0 only",
    ),
    (
        lambda r: r.links.update({n: {"error": "no answer", "stage": "big"} for n in r.links}),
        "MTU",
        "does not reach w0, w1, w3 with large packets, while small ones get through",
    ),
    (
        lambda r: r.links.update({n: {"error": "no answer", "stage": "connect"} for n in r.links}),
        "ports",
        "does not reach w0, w1, w3 (no answer)",
    ),
    (lambda r: facts(r)["resolved"].update(w1=[]), "resolution", "finds no address of w1"),
    (
        lambda r: facts(r)["resolved"].update(w1=["127.0.1.1"]),
        "resolution",
        "takes w1 for itself (127.0.1.1)",
    ),
]


@pytest.mark.parametrize(("change", "check", "words"), FAULTS, ids=[f[1] for f in FAULTS])
def test_each_fault_names_its_host(change: Break, check: str, words: str) -> None:
    reports = cluster()
    change(reports[2])
    found = failures(judge(reports))
    assert set(found) == {check}, found
    assert found[check].hosts == ("w2",)
    assert words in found[check].text
    assert found[check].remedy


def test_gloo_and_a_name_that_is_loopback() -> None:
    """A failure on the CPU, where gloo listens at the host's own name; a note beside GPUs."""
    reports = cluster()
    facts(reports[1])["own_address"] = ["127.0.1.1"]
    assert failures(judge(reports)) == {}
    for report in reports:
        facts(report)["gpus"] = {"devices": [], "present": 0, "error": None}
    assert failures(judge(reports))["own name"].hosts == ("w1",)


def test_no_majority_names_all() -> None:
    reports = cluster()[:2]
    facts(reports[0])["versions"]["peft"] = "2"
    assert failures(judge(reports))["peft"].hosts == ("w0", "w1")


def test_an_address_of_rank_0_that_nobody_reaches() -> None:
    reports = cluster()
    facts(reports[0])["first_address"] = "172.17.0.1"
    for report in reports[1:]:
        report.master = {"error": "no answer", "stage": "connect"}
    (found,) = [f for f in judge(reports) if f.status == "fail"]
    assert (found.check, found.hosts) == ("master address", ("w0",))
    assert "takes 172.17.0.1 for w0" in found.text
    assert found.remedy == "ds-train train RECIPE -- --master_addr 10.0.0.0"


def test_master_port() -> None:
    reports = cluster()
    reports[0].master_port_error = "Address already in use"
    found = failures(judge(reports))["master port"]
    assert found.text == "cluster.master_port = 29500: Address already in use"


def test_two_hosts_with_each_their_own_broken_link() -> None:
    reports = cluster()
    reports[0].links["w1"] = {"error": "no answer", "stage": "connect"}
    found = [f for f in judge(reports) if f.status == "fail"]
    assert [(f.check, f.hosts, f.text) for f in found] == [
        ("ports", ("w1",), "not reached by w0 (no answer)")
    ]
    reports[0].links["w1"] = {"error": "Network is unreachable", "stage": "connect"}
    (one,) = [f for f in judge(reports) if f.status == "fail"]
    assert (one.hosts, one.text) == (("w0",), "does not reach w1 (Network is unreachable)")


def pairs(num: int, slow: dict[tuple[int, int], float]) -> list[dict[str, float]]:
    every = [(a, b) for a in range(num) for b in range(a + 1, num)]
    return [{"a": a, "b": b, "bytes_per_second": slow.get((a, b), 1e9)} for a, b in every]


def test_slow_links() -> None:
    hosts = ["w0", "w1", "w2", "w3"]
    host = {(a, b): 1e7 for a in range(4) for b in range(4) if 2 in (a, b)}
    (found,) = judge_pairs(pairs(4, host), hosts)
    assert (found.status, found.hosts) == ("fail", ("w2",))
    (found,) = judge_pairs(pairs(4, {(1, 3): 1e7}), hosts)
    assert (found.status, found.hosts) == ("fail", ("w1", "w3"))
    (found,) = judge_pairs(pairs(4, {(1, 3): 4e8}), hosts)
    assert found.status == "ok"
    (found,) = judge_pairs(pairs(2, {}), hosts)
    assert found.status == "note"


@pytest.mark.parametrize("num", [1, 2, 3, 4, 7, 16])
def test_every_pair_plays_once(num: int) -> None:
    played = [pair for some in rounds(num) for pair in some]
    assert sorted(played) == [(a, b) for a in range(num) for b in range(a + 1, num)]
    for some in rounds(num):
        players = [player for pair in some for player in pair]
        assert len(set(players)) == len(players)


def test_pairs_that_seem_slow_are_looked_at_again() -> None:
    seconds = {(0, 1): 0.001, (0, 2): 0.0039, (1, 2): 0.0041, (1, 3): 0.5}
    assert look_again(seconds, 0) == look_again(seconds, 1) == {(1, 2): 10, (1, 3): 1}
    assert look_again(seconds, 2) == {(1, 2): 10}
    assert look_again({}, 0) == {}


def test_hosts_that_never_join_are_named() -> None:
    mark = "@@ds-train-allreduce "
    printed = f'w0: {mark}{{"joined": 0, "host": 0}}\nnoise\nw2: {mark}{{"joined": 2, "host": 2}}\n'
    measured = {**read_collective(printed, "did not end within 40 s"), "failed": None}
    (found,) = judge_collective(measured, ["w0", "w1", "w2"])
    assert (found.status, found.hosts) == ("fail", ("w1",))
    assert "did not end within 40 s" in found.text
