"""What pydantic found wrong, in our words: field = value: rule; remedy, and where it is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from ds_train.config.base import Section
from ds_train.config.names import section_of, unknown_key
from ds_train.config.run import RunConfig
from ds_train.config.yaml_strict import KeyPath, dotted

Origin = Callable[[KeyPath], str]


def describe_faults(error: ValidationError, origin: Origin) -> dict[KeyPath, str]:
    """One message per faulty place. `origin` says where a place is written, e.g. ' (line 3)'."""
    messages: dict[KeyPath, str] = {}
    for item in error.errors(include_url=False):
        path, section, field = _place(item["loc"])
        if path in messages:
            continue
        if item["type"] == "extra_forbidden":
            message = unknown_key(path[:-1], str(path[-1]), section)
        else:
            message = _message(path, item, section, field)
        messages[path] = _with_origin(message, origin(path))
    return messages


def _with_origin(message: str, where: str) -> str:
    return message[:-1] + where + "." if where and message.endswith(".") else message + where


def _place(loc: tuple[str | int, ...]) -> tuple[KeyPath, type[Section], str]:
    """Path of settings inside pydantic's location, the section that owns it, the field's name."""
    path: list[str | int] = []
    section: type[Section] = RunConfig
    owner, field = section, ""
    for part in loc:
        if isinstance(part, int):
            path.append(part)
            continue
        if section is None:
            if field in _BY_NAME:
                path.append(part)
            break
        path.append(part)
        owner, field = section, part
        info = section.model_fields.get(part)
        inner = section_of(info.annotation) if info is not None else None
        section = inner  # type: ignore[assignment]
    return tuple(path), owner, field


_BY_NAME = (
    *("columns", "labels", "template_kwargs", "config_overrides", "arms"),
    *("weights", "max_epochs"),
)
"""Settings whose keys are the user's own names."""


def _message(path: KeyPath, item: Any, section: type[Section], field: str) -> str:
    name = dotted(path)
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return f"{name} is missing: {_documentation(section, field)}"
    if kind == "value_error" and isinstance(value, dict):
        if _is_mapping(section, field):
            return f"{name}: {str(item['ctx']['error']).rstrip('.')}."
        return f"{name}: {_section_rule(item['ctx']['error'], value)}."
    rule = _rule(kind, item.get("ctx", {}), value, section, field, is_entry=path[-1] != field)
    if value is None:
        rule = "is empty; give a value, or remove the line to take the default"
        return f"{name} {rule}."
    return f"{name} = {show(value)}: {rule}{'' if rule.endswith('?') else '.'}"


def _is_mapping(section: type[Section], field: str) -> bool:
    """Whether a field holds keys of the user's own, as compare.arms does, and is no section."""
    info = section.model_fields.get(field)
    return info is not None and section_of(info.annotation) is None


def show(value: Any) -> str:
    """A value as it stands in a message: text in quotes, long ones cut."""
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    text = {"True": "true", "False": "false"}.get(text, text)
    return text if len(text) <= 60 else text[:57] + "..."


def _documentation(section: type[Section], field: str) -> str:
    info = section.model_fields.get(field)
    text = (info.description or "") if info is not None else ""
    return " ".join(text.split()) or "give it"


def _section_rule(error: ValueError, value: dict[str, Any]) -> str:
    """Rule about several keys of one section, with which of them are given."""
    rule = str(error).rstrip(".")
    named = [key for key in value if re.search(rf"\b{key}\b", rule) and value[key] is not None]
    return f"{rule} (given: {', '.join(named) if named else 'none'})"


_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _rule(
    kind: str, ctx: dict[str, Any], value: Any, section: type[Section], field: str, is_entry: bool
) -> str:
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"must be {words} {ctx[key]:g}"
    if kind == "value_error":
        return re.sub(rf"^{re.escape(repr(value))} ", "", str(ctx["error"]).rstrip("."))
    if kind == "literal_error":
        return _choice_rule(ctx["expected"], value)
    if kind.startswith("bool"):
        return "must be true or false"
    if kind.startswith(("int", "float")):
        return "must be a number"
    if kind == "too_short":
        return "is empty; name at least one source: [{path: train.jsonl}]"
    return _shape_rule(kind, value, section, field, is_entry)


def _shape_rule(kind: str, value: Any, section: type[Section], field: str, is_entry: bool) -> str:
    """Rule for a value that is text, list or section where another of them belongs."""
    if kind == "string_type" and not isinstance(value, dict | list):
        return f"must be text; put it in quotes: '{show(value)}'"
    annotation = section.model_fields[field].annotation if field in section.model_fields else None
    inner = section_of(annotation)
    if kind in ("model_type", "model_attributes_type") and inner is not None:
        example = next(iter(inner.model_fields))
        return f"must be a section with settings such as {example}: ..."
    if kind == "list_type":
        example = "[{path: train.jsonl}]" if inner is not None else "[a, b]"
        return f"must be a list, e.g. {example}"
    if kind == "dict_type":
        return "must be a section of `key: value` lines"
    if kind == "string_type":
        also = " or a list of text" if "list[str]" in str(annotation) and not is_entry else ""
        return f"must be text{also}"
    return "is not of the kind that is expected here"


def _choice_rule(expected: str, value: Any) -> str:
    """Rule for a fixed set of words, with the nearest of them."""
    choices = re.findall(r"'([^']*)'", expected)
    near = get_close_matches(str(value).lower(), choices, n=1, cutoff=0.6)
    rule = f"must be one of {', '.join(choices)}"
    return f"{rule}. Did you mean {near[0]}?" if near else rule
