"""The hostfile, read as strictly as the deepspeed launcher reads it, and its filters.

worker-0 slots=8
worker-1 slots=8     # `#` starts a comment line
"""

from __future__ import annotations

import re
from pathlib import Path

from ds_train.config.files import missing
from ds_train.errors import ConfigError

Slots = dict[str, list[int]]
"""Host -> accelerators used on it, in the order of ranks."""

_LINE = re.compile(r"(\S+)\s+slots=(\d+)(\s.*)?")


def read_hostfile(path: str | Path) -> dict[str, int]:
    """Host -> number of slots. Raises ConfigError with every bad line and its number."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(missing("cluster.hostfile", str(path), "file")) from None
    except OSError as error:
        raise ConfigError(f'cluster.hostfile = "{path}": {error.strerror}.') from None
    except UnicodeDecodeError:
        raise ConfigError(f'cluster.hostfile = "{path}": is not a text file.') from None
    hosts: dict[str, int] = {}
    first_line: dict[str, int] = {}
    faults = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        place = f'cluster.hostfile = "{path}": line {number}'
        match = _LINE.fullmatch(text)
        if match is None:
            faults.append(f'{place} is "{text}"; write it like worker-0 slots=8.')
        elif match[1] in hosts:
            faults.append(f"{place} names {match[1]} again (first on line {first_line[match[1]]}).")
        elif int(match[2]) == 0:
            faults.append(f"{place} gives {match[1]} no slots; remove the line.")
        else:
            hosts[match[1]], first_line[match[1]] = int(match[2]), number
    if not hosts and not faults:
        faults.append(f'cluster.hostfile = "{path}": names no host; write worker-0 slots=8.')
    if faults:
        raise ConfigError(faults)
    return hosts


def check_environment_file(path: Path) -> list[str]:
    """Faults of a .deepspeed_env, whose empty and comment lines make the launcher crash."""
    if not path.is_file():
        return []
    return [
        f'{path}: line {number} is "{line}"; DeepSpeed wants KEY=VALUE in every line, also no '
        f"empty line and no comment."
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if "=" not in line
    ]


def filter_slots(slots: Slots, include: str = "", exclude: str = "") -> Slots:
    """The launcher's --include and --exclude: `host@host:0,2`. Raises ConfigError."""
    if include and exclude:
        raise ConfigError("launcher arguments: give --include or --exclude, not both.")
    if include:
        chosen = _parse_nodes("--include", include, slots)
        return {host: chosen[host] for host in slots if host in chosen}
    removed = _parse_nodes("--exclude", exclude, slots) if exclude else {}
    rest = {
        host: [s for s in all_ if s not in removed.get(host, [])] for host, all_ in slots.items()
    }
    return {host: left for host, left in rest.items() if left}


def _parse_nodes(option: str, text: str, slots: Slots) -> Slots:
    nodes: Slots = {}
    for node in text.split("@"):
        host, _, numbers = node.partition(":")
        if host not in slots:
            raise ConfigError(
                f"launcher arguments: {option} {text}: there is no host {host}; "
                f"there are {', '.join(slots)}."
            )
        wanted = [int(n) for n in numbers.split(",") if n.isdigit()] if numbers else slots[host]
        if unknown := [slot for slot in wanted if slot not in slots[host]]:
            raise ConfigError(
                f"launcher arguments: {option} {text}: {host} has no slot {unknown[0]}; it has "
                f"{len(slots[host])}, counted from 0."
            )
        nodes[host] = sorted({*nodes.get(host, []), *wanted})
    return nodes
