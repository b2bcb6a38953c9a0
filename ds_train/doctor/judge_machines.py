"""What the facts of single hosts mean for a run: software, GPUs, limits, files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ds_train.doctor.finding import Finding, fail, note, ok
from ds_train.doctor.gather import HostReport, Needs
from ds_train.units import format_bytes

MIN_SHM_BYTES = 1 << 30
"""NCCL and data loaders use /dev/shm; containers have 64 MiB of it unless told otherwise."""
MIN_OPEN_FILES = 4096
BUSY_MIB = 500
"""Memory in use on a GPU that should be free; a driver alone takes less."""
STALE_SECONDS = 600
"""Longer than any extension takes to compile: the build that made the lock was killed."""


def judge_machines(reports: Sequence[HostReport], needs: Needs) -> Iterator[Finding]:
    """Findings about hosts that answer."""
    hosts = {report.name: report.facts for report in reports if report.facts is not None}
    if not hosts:
        return
    yield from _software(hosts)
    yield from _build_tools(hosts)
    yield from _gpus(hosts)
    yield from _limits(hosts)
    yield from _paths(hosts, needs)
    yield from _disk(hosts, needs)


Facts = Mapping[str, dict[str, Any]]


def _software(hosts: Facts) -> Iterator[Finding]:
    yield _equal("python", hosts, lambda f: f["python"], "install the same Python")
    for name in ("torch", "deepspeed", "ds-train", "transformers", "peft"):
        remedy = f"install the same {name} everywhere, or share one environment"
        found = {host: {"version": facts["versions"][name]} for host, facts in hosts.items()}
        yield _equal(name, found, lambda f: f["version"], remedy)
    remedy = "copy the same checkout to every host, or share it"
    yield _equal("ds-train code", hosts, lambda f: f["code"], remedy)
    yield _equal(
        "CUDA of torch", hosts, lambda f: f["torch_cuda"] or "CPU build", "install the same build"
    )
    if any(f["nccl"] for f in hosts.values()):
        yield _equal("NCCL", hosts, lambda f: f["nccl"], "install the same torch build")


def _equal(check: str, hosts: Facts, read: Callable[[Any], Any], remedy: str) -> Finding:
    """One value everywhere; otherwise the hosts that differ from most others are named."""
    values = {name: read(facts) for name, facts in hosts.items()}
    missing = tuple(name for name, value in values.items() if value is None)
    if missing:
        return fail(check, "is not installed", remedy, *missing)
    counts = Counter(values.values()).most_common()
    if len(counts) == 1:
        return ok(check, str(counts[0][0]))
    usual, num = counts[0]
    odd = [name for name, value in values.items() if value != usual]
    if num == counts[1][1]:  # no majority: all are named
        odd, usual = list(values), "one version"
    said = ", ".join(f"{values[name]} on {name}" for name in odd)
    return fail(check, f"{said}, {usual} elsewhere", remedy, *odd)


def _build_tools(hosts: Facts) -> Iterator[Finding]:
    """What torch and DeepSpeed compile their extensions with, at their first use."""
    for name, facts in hosts.items():
        built, home = facts["torch_cuda"], facts["cuda_home"]
        has_gpus = bool(facts["gpus"]["devices"])
        if built and has_gpus and home["version"] is None:
            yield note(
                "CUDA toolkit",
                f"none found (CUDA_HOME = {home['home']}), so DeepSpeed can't compile its own "
                "optimizers",
                f"set CUDA_HOME to a toolkit of CUDA {built.split('.')[0]}",
                name,
            )
        elif built and home["version"] and built.split(".")[0] != home["version"].split(".")[0]:
            yield fail(
                "CUDA toolkit",
                f"CUDA_HOME has CUDA {home['version']}, torch is built for {built}",
                f"set CUDA_HOME to a toolkit of CUDA {built.split('.')[0]}; DeepSpeed refuses to "
                "compile with another one",
                name,
            )
        for what, value, package in (
            ("compiler", facts["compiler"], "g++"),
            ("ninja", facts["ninja"], "ninja"),
        ):
            if value is None:
                yield fail(what, "none found", f"install {package}", name)
        for lock in facts["build_locks"]:
            if lock["seconds"] > STALE_SECONDS:
                yield fail(
                    "extension lock",
                    f"{lock['path']} is left of a build that was killed; a run would wait for it "
                    "for ever",
                    f"rm {lock['path']}",
                    name,
                )
    versions = sorted({f["compiler"]["version"] for f in hosts.values() if f["compiler"]})
    if versions:
        yield ok("compiler", f"C++ {', '.join(versions)}")


def _gpus(hosts: Facts) -> Iterator[Finding]:
    numbers = Counter(len(f["gpus"]["devices"]) for f in hosts.values())
    for name, facts in hosts.items():
        found = facts["gpus"]
        if found["error"] is not None:
            remedy = "run nvidia-smi there; a driver that does not match its kernel module wants a "
            yield fail("GPUs", f"nvidia-smi fails: {found['error']}", remedy + "reboot", name)
        elif found["present"] > len(found["devices"]):
            lost = found["present"] - len(found["devices"])
            remedy = "look at dmesg for Xid errors; reset the GPU or reboot"
            yield fail("GPUs", f"{lost} of {found['present']} are lost to the driver", remedy, name)
        for device in found["devices"]:
            yield from _one_gpu(name, device)
    if set(numbers) == {0}:
        yield note("GPUs", "none on any host: runs use the CPU")
        return
    read = {name: len(f["gpus"]["devices"]) for name, f in hosts.items()}
    models = sorted({d["name"] for f in hosts.values() for d in f["gpus"]["devices"]})
    if len(numbers) > 1:
        usual = numbers.most_common()[0][0]
        odd = [name for name, number in read.items() if number != usual]
        said = ", ".join(f"{read[name]} on {name}" for name in odd)
        remedy = "repair those hosts, or write their number into the hostfile (slots)"
        yield fail("GPUs", f"{said}, {usual} elsewhere", remedy, *odd)
    elif len(models) > 1:
        yield note("GPUs", f"different ones: {', '.join(models)}; the slowest sets the pace")
    else:
        yield ok("GPUs", f"{usual_number(numbers)} x {models[0]} on each host")
    drivers = {
        name: f["gpus"]["devices"][0]["driver"] for name, f in hosts.items() if f["gpus"]["devices"]
    }
    with_gpus = {name: {"driver": driver} for name, driver in drivers.items()}
    yield _equal("driver", with_gpus, lambda f: f["driver"], "install the same NVIDIA driver")


def usual_number(numbers: Counter[int]) -> int:
    """The most frequent one."""
    return numbers.most_common()[0][0]


def _one_gpu(host: str, device: dict[str, Any]) -> Iterator[Finding]:
    label = f"GPU {device['index']}"
    if device["ecc"]:
        yield fail(
            "GPU memory",
            f"{label}: {device['ecc']} uncorrected ECC errors",
            f"reset it (nvidia-smi -r -i {device['index']}) or have it replaced",
            host,
        )
    if busy := device["processes"]:
        said = ", ".join(f"{p['name']} (pid {p['pid']}, {p['mib']} MiB)" for p in busy)
        yield fail("GPU in use", f"{label}: {said}", "end it, or exclude that GPU", host)
    elif (device["used_mib"] or 0) > BUSY_MIB:
        yield fail(
            "GPU in use",
            f"{label}: {device['used_mib']} MiB are taken by a process that is not shown",
            "look for it outside this container: fuser -v /dev/nvidia*",
            host,
        )


def _limits(hosts: Facts) -> Iterator[Finding]:
    limited = []
    for name, facts in hosts.items():
        shm = facts["shm"]
        if shm is not None and shm["free"] < MIN_SHM_BYTES:
            left = (
                f"; {shm['left_over']} buffers of ended runs lie there" if shm["left_over"] else ""
            )
            yield fail(
                "shared memory",
                f"/dev/shm: {format_bytes(shm['free'])} free of {format_bytes(shm['total'])}{left}",
                "rm /dev/shm/deepspeed_allreduce_buffer_*; in a container: --shm-size=16g, or "
                "mount a larger tmpfs",
                name,
            )
        if 0 <= facts["nofile"] < MIN_OPEN_FILES:
            limited.append(name)
        # what CUDA pins does not count; what a network adapter pins does
        if facts["memlock"] >= 0 and facts["rdma"] and len(hosts) > 1:
            yield fail(
                "memory lock",
                f"ulimit -l is {format_bytes(facts['memlock'])}, and RDMA pins memory",
                "set memlock to unlimited in /etc/security/limits.conf; in a container: "
                "--ulimit memlock=-1",
                name,
            )
    if limited:
        remedy = f"set nofile to {MIN_OPEN_FILES} or more in /etc/security/limits.conf"
        yield note("open files", f"ulimit -n is below {MIN_OPEN_FILES}", remedy, *limited)
    shm = min((f["shm"]["free"] for f in hosts.values() if f["shm"] is not None), default=0)
    yield ok("limits", f"memory lock and open files looked at; {format_bytes(shm)} of /dev/shm")


def _paths(hosts: Facts, needs: Needs) -> Iterator[Finding]:
    for field, path in needs.reads.items():
        found = {name: facts["paths"][field] for name, facts in hosts.items()}
        lost = [name for name, one in found.items() if one is None]
        closed = [name for name, one in found.items() if one is not None and not one["readable"]]
        if lost:
            remedy = "put it on a file system that all hosts share, or copy it to the same path"
            yield fail("files", f"{field} = {path} is not there", remedy, *lost)
        elif closed:
            yield fail("files", f"{field} = {path} can't be read", "change its mode", *closed)
        else:
            sizes = {name: {"size": f"{one['bytes']:,} bytes"} for name, one in found.items()}
            result = _equal("files", sizes, lambda f: f["size"], "copy the same files everywhere")
            text = f"{field} = {path}: {result.text}"
            yield Finding("files", result.status, text, result.hosts, result.remedy)


def _disk(hosts: Facts, needs: Needs) -> Iterator[Finding]:
    needed = needs.disk_bytes or 0
    for field, folder in (("output_dir", needs.output_dir), ("data.cache_dir", needs.cache_dir)):
        if folder is None:
            continue
        found = {name: facts["folders"][folder] for name, facts in hosts.items()}
        for name, one in found.items():
            # of the output folder judge_network tells it
            if one["error"] is not None and field != "output_dir":
                remedy = "mount it writable there, or change its owner or mode"
                yield fail(field, f"{one['place']}: {one['error']}", remedy, name)
        short = [name for name, one in found.items() if one["free"] < needed]
        free = format_bytes(min(one["free"] for one in found.values()))
        if field == "output_dir" and short:
            yield fail(
                "free disk",
                f"{folder}: {free} free, the run needs {format_bytes(needed)}",
                "free some, choose another output_dir, or lower checkpoint.keep",
                *short,
            )
        elif field == "output_dir":
            wanted = f", the run needs {format_bytes(needed)}" if needed else ""
            yield ok("free disk", f"{folder}: {free}{wanted}")
