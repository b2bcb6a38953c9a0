"""One thing that was checked, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "note", "fail", "skipped"]


@dataclass(frozen=True)
class Finding:
    """A line of the table."""

    check: str
    status: Status
    text: str
    hosts: tuple[str, ...] = ()
    """Those that it is about; none where it is about all."""
    remedy: str | None = None

    def to_json(self) -> dict[str, object]:
        """As in the report."""
        return asdict(self)


def fail(check: str, text: str, remedy: str, *hosts: str) -> Finding:
    """Something that would break or spoil a run."""
    return Finding(check, "fail", text, hosts, remedy)


def ok(check: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", text)


def note(check: str, text: str, remedy: str | None = None, *hosts: str) -> Finding:
    """Worth knowing; a run works all the same."""
    return Finding(check, "note", text, hosts, remedy)


def skipped(check: str, why: str) -> Finding:
    """Could not be looked at."""
    return Finding(check, "skipped", why)
