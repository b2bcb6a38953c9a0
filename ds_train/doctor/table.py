"""The findings for people, and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ds_train.doctor.finding import Finding
from ds_train.doctor.gather import HostReport
from ds_train.units import format_bytes

_MARKS = {"ok": "ok", "note": "note", "fail": "FAIL", "skipped": "skipped"}
_WIDTH = 100


def lines(findings: Sequence[Finding]) -> list[str]:
    """A line or more for each finding; a failure with its remedy below."""
    name = max(len(finding.check) for finding in findings)
    shown = []
    for finding in findings:
        head = f"{_MARKS[finding.status]:<8}{finding.check:<{name}}  "
        who = f"{', '.join(finding.hosts)}: " if finding.hosts else ""
        indent = " " * len(head)
        shown += textwrap.wrap(
            who + finding.text, _WIDTH, initial_indent=head, subsequent_indent=indent,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        if finding.remedy is not None:
            shown += textwrap.wrap(
                finding.remedy, _WIDTH, initial_indent=indent + "-> ",
                subsequent_indent=indent + "   ", break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return shown


def bandwidth_lines(measured: Mapping[str, Any] | None) -> list[str]:
    """The all-reduce by message size."""
    if not measured or not measured.get("ring"):
        return []
    rows = [f"{'message':>12}{'time':>14}{'per link':>16}"]
    for entry in measured["ring"]:
        rows.append(
            f"{format_bytes(entry['bytes']):>12}{1e6 * entry['seconds']:>11,.0f} us"
            f"{format_bytes(entry['bus_bytes_per_second']):>14}/s"
        )
    return ["", "all-reduce", *rows]


def as_json(
    reports: Sequence[HostReport],
    findings: Sequence[Finding],
    measured: Mapping[str, Any] | None,
    seconds: float,
) -> dict[str, Any]:
    """Everything that was found out."""
    return {
        "seconds": seconds,
        "failures": sum(finding.status == "fail" for finding in findings),
        "findings": [finding.to_json() for finding in findings],
        "all_reduce": measured,
        "hosts": {
            report.name: {
                "fault": None if report.fault is None else report.fault.text,
                "facts": report.facts,
                "skew_seconds": report.skew_seconds,
                "interface": report.interface,
                "interfaces": report.interfaces,
                "links": report.links,
            }
            for report in reports
        },
    }
