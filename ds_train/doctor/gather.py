"""Asks all hosts at once: first what each of them is, then what they are to each other."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds_train.doctor.session import HostFault, Session

LOCAL = "localhost"
MASTER = "rank 0"
"""Among the targets: the first host by the address that DeepSpeed's launcher takes."""
_FACTS_SECONDS = 25.0
_ANSWER_SECONDS = 15.0


@dataclass(frozen=True)
class Needs:
    """What a run asks of its hosts."""

    reads: Mapping[str, str] = field(default_factory=dict)
    """Field of the recipe -> file or folder."""
    output_dir: str | None = None
    cache_dir: str | None = None
    disk_bytes: int | None = None
    """Free bytes that the run will use in its output folder."""
    master_port: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of every rank."""


@dataclass
class HostReport:
    """What is known of one host; parts that could not be asked for are None."""

    name: str
    fault: HostFault | None = None
    facts: dict[str, Any] | None = None
    skew_seconds: float | None = None
    """Its clock minus ours."""
    skew_error_seconds: float = 0.0
    """Half of the time that the question was under way."""
    interfaces: dict[str, Any] = field(default_factory=dict)
    route: str | None = None
    """Its own address on the way to the next host."""
    port: int | None = None
    master_port_error: str | None = None
    links: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Other host -> microseconds, or error and stage."""
    master: dict[str, Any] | None = None
    """The same to the address that the launcher would give to rank 0."""
    token_error: str | None = None
    missing: list[str] = field(default_factory=list)
    """Hosts whose file in the output folder it does not see."""

    @property
    def answers(self) -> bool:
        """Whether it can be asked."""
        return self.fault is None and self.facts is not None

    @property
    def interface(self) -> str | None:
        """The interface that its traffic to the other hosts takes."""
        return next(
            (name for name, one in self.interfaces.items() if one["address"] == self.route), None
        )


def gather(
    hosts: Sequence[str], needs: Needs, clock: Callable[[], float], ssh_port: int | None = None
) -> list[HostReport]:
    """A report for each host, in order. `hosts` empty: this machine, without ssh.

    `clock`: seconds since 1970 here.
    """
    reports = [HostReport(name) for name in hosts] or [HostReport(LOCAL)]
    sessions = {
        report.name: Session(report.name if hosts else None, needs.variables, ssh_port)
        for report in reports
    }
    try:
        with ThreadPoolExecutor(len(reports)) as pool:
            asking = _Asking(pool, sessions, reports)
            asking.each(lambda report, session: _ask_facts(report, session, hosts, needs))
            asking.each(lambda report, session: _ask_clock(report, session, clock))
            _ask_links(asking, needs)
            if needs.output_dir is not None:
                _ask_tokens(asking, needs.output_dir)
    finally:
        for session in sessions.values():
            session.close()
    return reports


class _Asking:
    """The same question to all hosts that still answer, at once."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        sessions: Mapping[str, Session],
        reports: Sequence[HostReport],
    ) -> None:
        self._pool, self._sessions, self._reports = pool, sessions, reports

    @property
    def alive(self) -> list[HostReport]:
        return [report for report in self._reports if report.fault is None]

    def each(self, ask: Callable[[HostReport, Session], None]) -> None:
        def one(report: HostReport) -> None:
            try:
                ask(report, self._sessions[report.name])
            except HostFault as fault:
                report.fault = fault

        list(self._pool.map(one, self.alive))


def _ask_facts(report: HostReport, session: Session, hosts: Sequence[str], needs: Needs) -> None:
    folders = [folder for folder in (needs.output_dir, needs.cache_dir) if folder is not None]
    report.facts = session.ask(
        "facts", _FACTS_SECONDS, paths=dict(needs.reads), names=list(hosts), need_write=folders
    )
    report.interfaces = session.ask("interfaces", _ANSWER_SECONDS)


def _ask_clock(report: HostReport, session: Session, clock: Callable[[], float]) -> None:
    """The quickest of a few questions says it best."""
    best = None
    for _ in range(4):
        asked = clock()
        there = session.ask("clock", _ANSWER_SECONDS)["now"]
        answered = clock()
        if best is None or answered - asked < best:
            best = answered - asked
            report.skew_seconds = there - (asked + answered) / 2
            report.skew_error_seconds = best / 2


def _ask_links(asking: _Asking, needs: Needs) -> None:
    """Every host listens, then every host connects to every other one."""
    alive = asking.alive
    if len(alive) < 2:
        for report in alive:  # the one interface of a single host is loopback
            report.route = None
        _ask_master_port(asking, needs)
        return
    addresses: dict[str, dict[str, str]] = {}

    def listen(report: HostReport, session: Session) -> None:
        assert report.facts is not None
        report.port = session.ask("listen", _ANSWER_SECONDS)["port"]
        resolved = report.facts["resolved"]
        addresses[report.name] = {name: found[0] for name, found in resolved.items() if found}
        other = next((o.name for o in alive if o.name != report.name), report.name)
        if other in addresses[report.name]:
            answer = session.ask("route", _ANSWER_SECONDS, address=addresses[report.name][other])
            report.route = answer["address"]

    asking.each(listen)
    _ask_master_port(asking, needs)

    def connect(report: HostReport, session: Session) -> None:
        targets = [
            [other.name, addresses[report.name][other.name], other.port]
            for other in asking.alive
            if other is not report and other.port and other.name in addresses[report.name]
        ]
        first = alive[0]
        if report is not first and first.port and first.facts and first.facts["first_address"]:
            targets.append([MASTER, first.facts["first_address"], first.port])
        report.links = session.ask("connect", 2 * _ANSWER_SECONDS, targets=targets)
        report.master = report.links.pop(MASTER, None)

    asking.each(connect)


def _ask_master_port(asking: _Asking, needs: Needs) -> None:
    """Rank 0 is on the first host: can it listen where the recipe says?"""
    first = asking.alive[:1]

    def ask(report: HostReport, session: Session) -> None:
        if report in first and needs.master_port is not None:
            answer = session.ask("listen", _ANSWER_SECONDS, port=needs.master_port)
            report.master_port_error = answer["error"]

    asking.each(ask)


def _ask_tokens(asking: _Asking, folder: str) -> None:
    """Every host writes a file into the output folder, then looks for those of the others."""
    was_there = Path(folder).is_dir()
    mark = f".ds-train-doctor-{uuid.uuid4().hex[:8]}"
    names = {report.name: f"{mark}-{place}" for place, report in enumerate(asking.alive)}

    def write(report: HostReport, session: Session) -> None:
        answer = session.ask("write_token", _ANSWER_SECONDS, folder=folder, name=names[report.name])
        report.token_error = answer["error"]

    asking.each(write)
    written = {host: name for host, name in names.items() if not _error_of(asking, host)}

    def read(report: HostReport, session: Session) -> None:
        answer = session.ask(
            "read_tokens", _ANSWER_SECONDS, folder=folder, names=list(written.values())
        )
        report.missing = [host for host, name in written.items() if name in answer["missing"]]

    asking.each(read)
    asking.each(
        lambda _, session: session.ask(
            "remove_tokens",
            _ANSWER_SECONDS,
            folder=folder,
            names=list(names.values()),
            made=not was_there,
        )
    )


def _error_of(asking: _Asking, host: str) -> str | None:
    return next((r.token_error for r in asking.alive if r.name == host), "gone")
