"""`section.key=value` from the command line, laid over what the recipe file says."""

from __future__ import annotations

import re
from typing import Any

from ds_train.config.yaml_strict import KeyPath, dotted, parse_yaml

_PART = re.compile(r"[^.\[\]]+|\[\d+\]")


def parse_override(text: str) -> tuple[KeyPath, Any]:
    """Path and value of one override; the value is YAML, an empty one is null.

    Raises ValueError with the rule.
    """
    name, equals, value_text = text.partition("=")
    name = name.strip()
    if not equals:
        raise ValueError("must be section.key=value")
    if not name or "".join(_PART.findall(name)) != name.replace(".", ""):
        raise ValueError("must name a setting before the =, e.g. train.learning_rate=1e-4")
    path = tuple(_part(part) for part in _PART.findall(name))
    document = parse_yaml(value_text, "the value")
    if document.faults:
        raise ValueError(document.faults[0].rstrip(".") + "; put the whole override in quotes")
    return path, document.value


def _part(text: str) -> str | int:
    if text.startswith("["):
        return int(text[1:-1])
    return int(text) if text.isdigit() else text


def apply_override(raw: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Set `value` at `path` inside `raw`, making the sections on the way.

    Raises ValueError with the rule where the path leads through something that is no section.
    """
    here: Any = raw
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(here, list):
            here = _enter_list(here, part, path[:depth], value, last)
        elif isinstance(here, dict):
            here = _enter_dict(here, str(part), path, depth, value)
        else:
            raise ValueError(f"{dotted(path[:depth])} is {here!r}, which has no settings inside")


def _enter_dict(here: dict[str, Any], key: str, path: KeyPath, depth: int, value: Any) -> Any:
    if depth == len(path) - 1:
        here[key] = value
    elif here.get(key) is None:
        here[key] = [] if isinstance(path[depth + 1], int) else {}
    return here[key]


def _enter_list(here: list[Any], part: str | int, parent: KeyPath, value: Any, last: bool) -> Any:
    name = dotted(parent)
    if not isinstance(part, int):
        raise ValueError(f"{name} is a list; say which entry, e.g. {name}[0].{part}=...")
    if part > len(here):
        raise ValueError(f"{name} has {len(here)} entries, counted from 0; there is no [{part}]")
    if part == len(here):
        here.append(value if last else {})
    elif last:
        here[part] = value
    return here[part]
