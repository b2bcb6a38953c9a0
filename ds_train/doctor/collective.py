"""What the ranks of the all-reduce said, and which link or host is slow because of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ds_train.doctor.finding import Finding, fail, note, ok, skipped
from ds_train.units import format_bytes, format_seconds

MARK = "@@ds-train-allreduce "
SLOW = 4.0
"""So many times slower than the fastest pair is a slow link."""


def last_words(printed: str) -> str:
    """The line that says most: an error's own, else the last one."""
    lines = [line.strip() for line in printed.splitlines() if line.strip() and MARK not in line]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["ended without a word"])[-1][:300]


def read_collective(printed: str, error: str | None) -> dict[str, Any]:
    """What the ranks said, whatever login shells have written around it."""
    joined: list[int] = []
    result: dict[str, Any] = {}
    for line in printed.splitlines():
        _, mark, text = line.partition(MARK)
        if not mark:
            continue
        said = json.loads(text)
        if "joined" in said:
            joined.append(said["host"])
        else:
            result = said
    if not result and error is None:
        error = "rank 0 said nothing"
    return {**result, "joined": sorted(set(joined)), "error": error}


def judge_collective(measured: Mapping[str, Any], hosts: Sequence[str]) -> Iterator[Finding]:
    """Findings about the all-reduce and each pair of hosts."""
    if measured["failed"] is not None:
        remedy = "see the findings above; NCCL_DEBUG=INFO in cluster.env says more"
        yield fail("all-reduce", measured["error"], remedy, measured["failed"])
        return
    if measured["error"] is not None:
        absent = [name for place, name in enumerate(hosts) if place not in measured["joined"]]
        if absent:
            text = f"{measured['error']}; the processes of these hosts never started"
            remedy = (
                "start a Python there that imports torch, and see how long it takes; where a "
                "shared folder is slow, or hosts share a machine, --wait 120 gives them more time"
            )
            yield fail("all-reduce", text, remedy, *absent)
        else:
            remedy = "see the findings above; NCCL_DEBUG=INFO in cluster.env says more"
            yield fail("all-reduce", f"{measured['error']}; all processes started", remedy)
        return
    small, large = measured["ring"][0], measured["ring"][-1]
    yield ok(
        "all-reduce",
        f"{measured['world_size']} ranks, {measured['backend']}, started within "
        f"{format_seconds(measured['start_seconds'])}: {1e6 * small['seconds']:,.0f} us "
        f"for {small['bytes']} bytes, {format_bytes(large['bus_bytes_per_second'])}/s a link at "
        f"{format_bytes(large['bytes'])}",
    )
    yield from judge_pairs(measured["pairs"], hosts)


def judge_pairs(pairs: Sequence[Mapping[str, float]], hosts: Sequence[str]) -> Iterator[Finding]:
    """Which hosts, else which single links, are much slower than the best pair.

    A host is slow when all its links are; with two hosts there is nothing to compare with.
    """
    if len(pairs) < 2:
        if pairs:
            speed = format_bytes(pairs[0]["bytes_per_second"])
            text = f"{speed}/s between {hosts[0]} and {hosts[1]}; there is no other to compare with"
            yield note("links", text)
        return
    rates = {(int(p["a"]), int(p["b"])): p["bytes_per_second"] for p in pairs}
    best = max(rates.values())
    slow = {pair for pair, value in rates.items() if value * SLOW < best}
    bad_hosts = [
        host for host in range(len(hosts)) if all(pair in slow for pair in rates if host in pair)
    ]
    if len(bad_hosts) == len(hosts):
        bad_hosts = []
    told = f"{format_bytes(best)}/s between the fastest pair"
    remedy = (
        "look at its cable, its port's speed (ethtool), traffic shaping (tc qdisc), and whether it "
        "takes the interface that is meant"
    )
    for host in bad_hosts:
        worst = min(value for pair, value in rates.items() if host in pair)
        text = f"all its links are slow, down to {format_bytes(worst)}/s, {told}"
        yield fail("links", text, remedy, hosts[host])
    for a, b in sorted(slow):
        if a not in bad_hosts and b not in bad_hosts:
            text = f"{hosts[a]} - {hosts[b]}: {format_bytes(rates[a, b])}/s, {told}"
            yield fail("links", text, remedy, hosts[a], hosts[b])
    if not slow:
        worst = min(rates.values())
        yield ok("links", f"{format_bytes(worst)}/s between the slowest pair, {told}")


def skip_collective(faulty: Sequence[str]) -> Finding:
    """It would hang where hosts do not reach each other."""
    return skipped("all-reduce", f"not tried: repair first what is said about {', '.join(faulty)}")
