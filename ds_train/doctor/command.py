"""`ds-train doctor`: are these hosts fit for this run? Every fault at once, in under a minute."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_train.config.cluster import ClusterConfig
from ds_train.config.files import looks_like_path
from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.doctor.collective import judge_collective, skip_collective
from ds_train.doctor.finding import Finding, skipped
from ds_train.doctor.gather import LOCAL, HostReport, Needs, gather
from ds_train.doctor.judge_machines import judge_machines
from ds_train.doctor.judge_network import judge_network
from ds_train.doctor.pdsh import check_pdsh
from ds_train.doctor.ranks import HostRanks, rank_commands, run_collective
from ds_train.doctor.table import as_json, bandwidth_lines, lines
from ds_train.errors import ConfigError, ModelError
from ds_train.launch.command import free_port
from ds_train.launch.environment import remote_variables
from ds_train.launch.hostfile import Slots, filter_slots, read_hostfile
from ds_train.paths import default_cache_dir
from ds_train.plan.disk import disk_bytes
from ds_train.plan.model_files import describe_model
from ds_train.plan.trainable import choose
from ds_train.units import format_seconds, parse_bytes

_BLOCKING = {"ssh", "answer", "resolution", "ports", "own name", "interface", "python", "torch"}
"""A host with a fault of these could only hang an all-reduce."""


@dataclass(frozen=True)
class Subject:
    """What is looked at."""

    slots: Slots
    """Host -> its accelerators; empty for this machine alone."""
    cluster: ClusterConfig
    needs: Needs


def doctor_command(
    recipe: str | None,
    overrides: Sequence[str],
    *,
    hostfile: str | None,
    json_file: str | None,
    need_disk: str | None,
    all_reduce: bool,
    wait_seconds: float,
) -> int:
    """Print the table; 0 where nothing failed, else 1. Raises ConfigError about the input.

    `wait_seconds`: for the all-reduce, from the start of its processes to their end.
    """
    subject = _subject(recipe, overrides, hostfile, need_disk)
    _check_json(json_file)
    began = time.monotonic()
    reports = gather(list(subject.slots), subject.needs, time.time, subject.cluster.ssh_port)
    findings = [*judge_network(reports, subject.needs), *judge_machines(reports, subject.needs)]
    measured = None
    if all_reduce:
        found, measured = _measure(subject, reports, findings, wait_seconds)
        findings += found
    else:
        findings.append(skipped("all-reduce", "not asked for"))
    seconds = time.monotonic() - began
    failures = sum(finding.status == "fail" for finding in findings)
    for line in [*lines(findings), *bandwidth_lines(measured)]:
        print(line)
    hosts = "1 host" if len(reports) == 1 else f"{len(reports)} hosts"
    what = "1 failure" if failures == 1 else f"{failures or 'no'} failures"
    print(f"\n{hosts}, {len(findings)} findings, {what} ({format_seconds(seconds)})")
    if json_file is not None:
        text = json.dumps(as_json(reports, findings, measured, seconds), indent=1)
        Path(json_file).write_text(text + "\n", encoding="utf-8")
    return 1 if failures else 0


def _subject(
    recipe: str | None, overrides: Sequence[str], hostfile: str | None, need_disk: str | None
) -> Subject:
    config = None if recipe is None else load_recipe(recipe, overrides)
    cluster = ClusterConfig() if config is None else config.cluster
    hostfile = hostfile or cluster.hostfile
    slots: Slots = {}
    if hostfile is not None:
        pool = {host: list(range(number)) for host, number in read_hostfile(hostfile).items()}
        slots = filter_slots(pool, cluster.include or "", cluster.exclude or "")
    return Subject(slots, cluster, _needs(config, need_disk))


def _needs(config: RunConfig | None, need_disk: str | None) -> Needs:
    """What the recipe reads and writes, with absolute paths."""
    disk_bytes = None
    if need_disk is not None:
        try:
            disk_bytes = parse_bytes(need_disk)
        except ValueError as error:
            raise ConfigError(f"--need-disk: {error}.") from None
    variables = _variables(ClusterConfig() if config is None else config.cluster)
    if config is None:
        return Needs(disk_bytes=disk_bytes, variables=variables)
    reads = {"model.name_or_path": config.model.name_or_path}
    sources = [("data.train", config.data.train)]
    sources.append(("data.validation.sources", config.data.validation.sources))
    for name, some in sources:
        for i, source in enumerate(some):
            paths = [source.path] if isinstance(source.path, str) else source.path
            more = len(paths) > 1
            reads |= {
                f"{name}[{i}]{f'.path[{j}]' if more else ''}": path for j, path in enumerate(paths)
            }
    local = {name: path for name, path in reads.items() if _is_here(path)}
    return Needs(
        reads={name: str(Path(path).expanduser().absolute()) for name, path in local.items()},
        output_dir=str(Path(config.output_dir).absolute()),
        cache_dir=str(Path(config.data.cache_dir or default_cache_dir()).absolute()),
        disk_bytes=disk_bytes or _checkpoint_bytes(config),
        master_port=config.cluster.master_port,
        variables=variables,
    )


def _variables(cluster: ClusterConfig) -> dict[str, str]:
    """As the launcher hands them to a rank: modules are looked for here first."""
    before = os.environ.get("PYTHONPATH")
    path = f"{Path.cwd()}:{before}" if before else str(Path.cwd())
    return {"PYTHONPATH": path, **remote_variables(cluster.env, os.environ)}


def _is_here(path: str) -> bool:
    """Whether a name means a file or folder, and not something on the hub."""
    return looks_like_path(path) or Path(path).expanduser().exists()


def _checkpoint_bytes(config: RunConfig) -> int | None:
    """As `ds-train plan` counts them; None where the model can't be described on this machine."""
    try:
        return disk_bytes(config, choose(describe_model(config.model), config.adapter))
    except (ModelError, ConfigError):
        return None


def _check_json(json_file: str | None) -> None:
    """Told before a minute of work, not after it."""
    if json_file is not None and not Path(json_file).absolute().parent.is_dir():
        raise ConfigError(f"--json = {json_file}: its folder is not there; make it first.")


def _measure(
    subject: Subject,
    reports: Sequence[HostReport],
    findings: Sequence[Finding],
    seconds: float,
) -> tuple[list[Finding], dict[str, Any] | None]:
    """The all-reduce, among the hosts that have no fault that would make it hang."""
    blocked = {
        host
        for finding in findings
        if finding.status == "fail" and finding.check in _BLOCKING
        for host in finding.hosts
    }
    rest = [report for report in reports if report.answers and report.name not in blocked]
    if len(rest) < min(2, len(reports)):
        return [skip_collective(sorted(blocked))], None
    num_here = _num_processes(rest[0], subject)
    if len(reports) == 1 and num_here < 2:
        return [skipped("all-reduce", "a run has one process here")], None
    names, port = [report.name for report in rest], subject.cluster.ssh_port
    findings = [check_pdsh(names, port)] if len(rest) > 1 else []
    hosts = [_ranks_of(report, subject) for report in rest]
    address = (rest[0].facts or {}).get("first_address") if subject.slots else "127.0.0.1"
    commands = rank_commands(hosts, address or rest[0].name, free_port(), port, seconds)
    number = sum(one.number for one in hosts)
    print(f"all-reduce: {number} processes on {', '.join(names)}", flush=True)
    measured = run_collective(commands, seconds)
    return [*findings, *judge_collective(measured, names)], {**measured, "hosts": names}


def _ranks_of(report: HostReport, subject: Subject) -> HostRanks:
    """Where a run would have its ranks, with the variables that it would have there."""
    number, variables = _num_processes(report, subject), dict(subject.needs.variables)
    if not _has_gpus(report):
        variables.setdefault("DS_ACCELERATOR", "cpu")
    elif subject.slots:
        chosen = subject.slots[report.name][:number]
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(str(slot) for slot in chosen)
    return HostRanks(report.name, number, variables, over_ssh=bool(subject.slots))


def _has_gpus(report: HostReport) -> bool:
    forced = os.environ.get("DS_ACCELERATOR", "").lower() == "cpu"
    return not forced and bool(report.facts and report.facts["gpus"]["devices"])


def _num_processes(report: HostReport, subject: Subject) -> int:
    """One for each GPU that the run takes; on the CPU one a host, or two on a single machine."""
    if report.name == LOCAL and not subject.slots:
        here = len(report.facts["gpus"]["devices"]) if report.facts and _has_gpus(report) else 1
        return subject.cluster.processes_per_node or here
    if not _has_gpus(report):
        return 1
    slots = len(subject.slots[report.name])
    return min(slots, subject.cluster.processes_per_node or slots)
