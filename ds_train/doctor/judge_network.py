"""What the hosts are to each other, judged: reachability, names, clocks, MTU, ports, the folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ds_train.doctor.finding import Finding, fail, note, ok
from ds_train.doctor.gather import LOCAL, HostReport, Needs

MAX_SKEW_SECONDS = 2.0
"""Above it, file times and logs of different hosts no longer tell what came first."""


def judge_network(reports: Sequence[HostReport], needs: Needs) -> Iterator[Finding]:
    """Findings about the hosts together."""
    yield from _reached(reports)
    alive = [report for report in reports if report.answers]
    if len(reports) > 1 and len(alive) > 1:
        yield from _names(alive)
        yield from _clocks(alive)
        yield from _interfaces(alive)
        yield from _ports(alive)
        yield from _master_address(alive)
    if alive:
        yield from _own_names(alive)
        yield from _master_port(alive[0], needs)
        yield from _folder(alive, needs)


def _reached(reports: Sequence[HostReport]) -> Iterator[Finding]:
    for report in reports:
        if (fault := report.fault) is not None:
            yield fail(fault.check, fault.text, fault.remedy, report.name)
    if all(report.fault is None for report in reports) and reports[0].name != LOCAL:
        yield ok("ssh", f"{len(reports)} hosts answer without a password")


def _names(alive: Sequence[HostReport]) -> Iterator[Finding]:
    """Every host must find every other one by the name in the hostfile, at one address."""
    faults = 0
    for report in alive:
        assert report.facts is not None
        resolved = report.facts["resolved"]
        if lost := [name for name, found in resolved.items() if not found]:
            faults += 1
            remedy = "put the names into DNS, or the same lines into every /etc/hosts"
            yield fail("resolution", f"finds no address of {', '.join(lost)}", remedy, report.name)
    for other in alive:
        seen = {
            report.name: tuple(report.facts["resolved"].get(other.name, ()))
            for report in alive
            if report is not other and report.facts is not None
        }
        loopback = [name for name, found in seen.items() if found and found[0].startswith("127.")]
        if loopback:
            faults += 1
            text = f"takes {other.name} for itself ({seen[loopback[0]][0]})"
            yield fail("resolution", text, f"correct {other.name} in /etc/hosts", *loopback)
    if not faults:
        yield ok("resolution", "every host finds every other one by name")


def _own_names(alive: Sequence[HostReport]) -> Iterator[Finding]:
    """gloo listens where a host's own name leads: on loopback no other host gets through."""
    for report in alive:
        assert report.facts is not None
        addresses, name = report.facts["own_address"], report.facts["hostname"]
        chosen = report.facts["chosen"].get("GLOO_SOCKET_IFNAME")
        if chosen and chosen not in report.interfaces:
            remedy = f"name one of {', '.join(report.interfaces)}"
            yield fail(
                "interface", f"GLOO_SOCKET_IFNAME = {chosen}: not there", remedy, report.name
            )
        if len(alive) < 2 or chosen:
            continue
        if not addresses or addresses[0].startswith("127."):
            what = f"is {addresses[0]}" if addresses else "has no address"
            text = f"its own name {name} {what}; gloo (runs on the CPU) would listen there"
            remedy = "correct it in /etc/hosts, or set cluster.env GLOO_SOCKET_IFNAME"
            if report.facts["gpus"]["devices"]:
                yield note("own name", text, remedy, report.name)
            else:
                yield fail("own name", text, remedy, report.name)


def _clocks(alive: Sequence[HostReport]) -> Iterator[Finding]:
    """Against the median, so that one wrong clock, be it ours, does not accuse the others."""
    skews = {r.name: r.skew_seconds for r in alive if r.skew_seconds is not None}
    middle = sorted(skews.values())[len(skews) // 2]
    wrong = {
        r.name: skews[r.name] - middle
        for r in alive
        if r.name in skews and abs(skews[r.name] - middle) > MAX_SKEW_SECONDS + r.skew_error_seconds
    }
    for name, seconds in wrong.items():
        side = "ahead of" if seconds > 0 else "behind"
        text = f"{abs(seconds):.1f} s {side} the others"
        yield fail("clock", text, "start chronyd or systemd-timesyncd there", name)
    if not wrong:
        spread = max(skews.values()) - min(skews.values())
        error = max(r.skew_error_seconds for r in alive)
        yield ok("clock", f"at most {spread:.3f} s apart (known to {error:.3f} s)")


def _interfaces(alive: Sequence[HostReport]) -> Iterator[Finding]:
    """Which interface each host takes to the others, and whether they carry packets of one size."""
    chosen = {r.name: r.interface for r in alive}
    mtus = {r.name: r.interfaces[i]["mtu"] for r in alive if (i := r.interface) is not None}
    if not mtus:
        return
    usual, num = Counter(mtus.values()).most_common(1)[0]
    odd = [name for name, mtu in mtus.items() if mtu != usual]
    if odd and num == len(odd):
        usual, odd = max(mtus.values()), [n for n, mtu in mtus.items() if mtu != max(mtus.values())]
    if odd:
        said = ", ".join(f"{mtus[name]} on {name} ({chosen[name]})" for name in odd)
        remedy = f"ip link set {chosen[odd[0]]} mtu {usual} there; large packets are lost otherwise"
        yield fail("MTU", f"{said}, {usual} elsewhere", remedy, *odd)
    else:
        yield ok("MTU", f"{usual} on every host")
    for report in alive:
        wanted = (report.facts or {})["chosen"].get("NCCL_SOCKET_IFNAME", "")
        if wanted and not _matches(wanted, list(report.interfaces)):
            text = f"NCCL_SOCKET_IFNAME = {wanted}: there is {', '.join(report.interfaces)} only"
            yield fail("interface", text, "correct it in cluster.env", report.name)
    names = sorted({name for name in chosen.values() if name is not None})
    if names:
        yield ok("interface", f"{', '.join(names)} leads to the other hosts")


def _matches(wanted: str, present: list[str]) -> bool:
    """NCCL's rules: `eth` a prefix, `=eth0` exact, `^docker` none of these."""
    if wanted.startswith("^"):
        return any(not name.startswith(tuple(wanted[1:].split(","))) for name in present)
    if wanted.startswith("="):
        return any(name in wanted[1:].split(",") for name in present)
    return any(name.startswith(tuple(wanted.split(","))) for name in present)


def _ports(alive: Sequence[HostReport]) -> Iterator[Finding]:
    """A link that fails in many places is told once, by the host that all of them share."""
    bad = {
        (r.name, other): link for r in alive for other, link in r.links.items() if "error" in link
    }
    while bad:
        blame: Counter[str] = Counter()
        for (source, target), link in bad.items():
            # silence is the other side's doing, any other error this one's: a tie is decided so
            silent = link["error"] == "no answer"
            blame[source] += 10 + (not silent)
            blame[target] += 10 + silent
        worst = max(sorted(blame), key=lambda name: blame[name])
        yield _describe_links(worst, {p: link for p, link in bad.items() if worst in p})
        bad = {pair: link for pair, link in bad.items() if worst not in pair}
    links = [link for report in alive for link in report.links.values()]
    if links and not any("error" in link for link in links):
        slowest = max(link["microseconds"] for link in links)
        text = f"every host connects to every other one; {slowest:,.0f} us there and back at most"
        yield ok("ports", text)


def _describe_links(host: str, links: dict[tuple[str, str], dict[str, str]]) -> Finding:
    incoming = [a for a, b in links if b == host]
    outgoing = [b for a, b in links if a == host]
    parts = []
    if incoming:
        parts.append(f"not reached by {', '.join(incoming)}")
    if outgoing:
        parts.append(f"does not reach {', '.join(outgoing)}")
    first = next(iter(links.values()))
    if first["stage"] == "big":
        return fail(
            "MTU",
            f"{'; '.join(parts)} with large packets, while small ones get through",
            "lower the MTU of its interface to what the path carries (try: ping -M do -s 1472)",
            host,
        )
    return fail(
        "ports",
        f"{'; '.join(parts)} ({first['error']})",
        "open TCP ports above 1024 between the hosts (nft list ruleset, ip route), as NCCL, gloo "
        "and the launcher choose theirs freely",
        host,
    )


def _master_address(alive: Sequence[HostReport]) -> Iterator[Finding]:
    """Containers and second networks have addresses that other hosts do not reach."""
    first = alive[0]
    address = (first.facts or {}).get("first_address")
    lost = [
        r.name
        for r in alive
        if r.master is not None
        and "error" in r.master
        and "error" not in r.links.get(first.name, {"error": ""})
    ]
    if lost:
        text = (
            f"the launcher takes {address} for {first.name} (the first of hostname -I), which "
            f"{', '.join(lost)} can't reach"
        )
        remedy = f"ds-train train RECIPE -- --master_addr {first.route}"
        yield fail("master address", text, remedy, first.name)


def _master_port(first: HostReport, needs: Needs) -> Iterator[Finding]:
    if needs.master_port is None:
        return
    if first.master_port_error is not None:
        text = f"cluster.master_port = {needs.master_port}: {first.master_port_error}"
        yield fail("master port", text, "end who has it, or choose another", first.name)
    else:
        yield ok("master port", f"{needs.master_port} is free on {first.name}")


def _folder(alive: Sequence[HostReport], needs: Needs) -> Iterator[Finding]:
    """Is the output folder writable everywhere, and one and the same folder?"""
    if needs.output_dir is None:
        return
    where = f"output_dir = {needs.output_dir}"
    for report in alive:
        if report.token_error is not None:
            remedy = "mount it writable there, free some space, or change its owner or mode"
            yield fail("output folder", f"{where}: {report.token_error}", remedy, report.name)
    apart: Counter[str] = Counter()
    for report in alive:
        # a host that can't write is told above; that it sees nothing may be the same fault
        for other in report.missing if report.token_error is None else ():
            apart[report.name] += 1
            apart[other] += 1
    if apart:
        most = max(apart.values())
        alone = [name for name, number in apart.items() if number == most]
        remedy = "mount the same file system there, or choose an output_dir on one"
        yield fail("output folder", f"{where}: is another folder there", remedy, *alone)
    elif not any(report.token_error for report in alive) and len(alive) > 1:
        yield ok("output folder", f"{where}: written by each host and seen by all")
