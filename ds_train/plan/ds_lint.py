"""Faults of a DeepSpeed config that can be seen without the recipe: names, kinds, removed keys."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from ds_train.plan.ds_keys import ANY, BOOL, COUNT, KNOWN, LIST, NOT_HERE, NUMBER, REMOVED, TEXT


def lint_ds_config(raw: dict[str, Any], where: str) -> list[str]:
    """One message per unknown, removed, unsupported or ill-typed key, at every level.

    `where` is put before the key: 'engine.overrides'. "auto" is accepted as any value.
    """
    if not isinstance(raw, dict):
        return [f"{where}: must be a section of `key: value` lines, as in a ds_config.json."]
    return _lint_block(raw, KNOWN, where, "")


def _lint_block(raw: dict[str, Any], known: dict[str, Any], where: str, path: str) -> list[str]:
    faults = []
    for key, value in raw.items():
        full = f"{path}{key}"
        reason = REMOVED.get(full) or NOT_HERE.get(full)
        if reason is not None:
            faults += _refused(value, where, full, reason)
        elif key not in known:
            faults.append(f"{where}.{full}: DeepSpeed has no such setting{_nearest(key, path)}")
        elif isinstance(known[key], dict):
            faults += _lint_inner(value, known[key], where, full)
        elif not _is_kind(value, known[key]):
            faults.append(f"{where}.{full} = {_show(value)}: must be {_kind_name(known[key])}.")
    return faults


def _refused(value: Any, where: str, full: str, reason: str) -> list[str]:
    """A key that is refused; the parts of a block that have reasons of their own are named."""
    parts = [f"{full}.{key}" for key in value] if isinstance(value, dict) else []
    known = [part for part in parts if part in NOT_HERE]
    if known:
        return [f"{where}.{part}: {NOT_HERE[part]}." for part in known]
    return [f"{where}.{full}: {reason}."]


def _lint_inner(value: Any, known: dict[str, Any], where: str, full: str) -> list[str]:
    if value == "auto" or value is None:
        return []
    if not isinstance(value, dict):
        return [f"{where}.{full} = {_show(value)}: must be a block {{...}} of settings."]
    return _lint_block(value, known, where, f"{full}.")


def _is_kind(value: Any, kind: Any) -> bool:
    if value == "auto" or value is None or kind == ANY:
        return True
    if isinstance(kind, tuple):
        plain = value.lower() if isinstance(value, str) else value
        return not isinstance(value, bool) and plain in [
            choice.lower() if isinstance(choice, str) else choice for choice in kind
        ]
    if kind == BOOL:
        return isinstance(value, bool)
    if kind == TEXT:
        return isinstance(value, str)
    if kind == LIST:
        return isinstance(value, list | str)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return kind == NUMBER or (kind == COUNT and value >= 0 and value == int(value))


def _kind_name(kind: Any) -> str:
    if isinstance(kind, tuple):
        return "one of " + ", ".join(str(choice) for choice in kind)
    return {BOOL: "true or false", LIST: "a list", COUNT: "a whole number"}.get(kind, f"a {kind}")


def _nearest(key: str, path: str) -> str:
    """The nearest known key: in the same block first, then anywhere."""
    block: Any = KNOWN
    for part in path.split(".")[:-1]:
        block = block[part]
    if near := get_close_matches(key, list(block), n=1, cutoff=0.7):
        return f". Did you mean {path}{near[0]}?"
    places = {full.rsplit(".", 1)[-1]: full for full in reversed(_all_places(KNOWN, ""))}
    if near := get_close_matches(key, list(places), n=1, cutoff=0.8):
        return f". Did you mean {places[near[0]]}?"
    return "."


def _all_places(block: dict[str, Any], path: str) -> list[str]:
    places = []
    for key, kind in block.items():
        places.append(path + key)
        if isinstance(kind, dict):
            places += _all_places(kind, f"{path}{key}.")
    return places


def _show(value: Any) -> str:
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    return text or (f'"{value}"' if isinstance(value, str) else repr(value))
