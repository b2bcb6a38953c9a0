"""Values of a row by the name of a field: through the recipe's `columns`, by name or by path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ds_train.config.data import Format
from ds_train.data.read import Row
from ds_train.data.sources import list_names
from ds_train.errors import DataError

FIELDS: dict[Format, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ("tools",)),
    "sharegpt": (("conversations",), ("tools", "system")),
    "alpaca": (("instruction", "output"), ("input", "system")),
    "prompt_completion": (("prompt", "completion"), ()),
    "question_answer": (("question", "answer"), ("system",)),
    "text": (("text",), ()),
    "classification": (("text", "label"), ()),
    "multiple_choice": (("prompt", "choices", "answer"), ()),
}
"""Of each format: the fields that every row has, and those that it may have."""

MISSING = object()


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How the rows of one source are read."""

    name: Format
    how: str
    """Why it was chosen, for the audit."""
    columns: Mapping[str, str | list[str]]
    """Column (or path) of every field that the source has; several for `choices`."""
    as_chat: bool
    """Instructions and questions become conversations, since there is a chat template."""


def look_up(values: Mapping[str, Any], column: str) -> Any:
    """Value of a column, or of a path such as `instances.0.output`; MISSING when absent."""
    if column in values:
        return values[column]
    value: Any = values
    for key in column.split("."):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.lstrip("-").isdigit() and _has(value, int(key)):
            value = value[int(key)]
        else:
            return MISSING
    return value


def _has(values: list[Any], index: int) -> bool:
    return -len(values) <= index < len(values)


def field_value(row: Row, form: RowFormat, field: str) -> Any:
    """Value of a field, a list for several columns; None for an optional one that is not there."""
    columns = form.columns.get(field)
    if isinstance(columns, list):
        return [_column_value(row, form, field, column) for column in columns]
    return None if columns is None else _column_value(row, form, field, columns)


def _column_value(row: Row, form: RowFormat, field: str, column: str) -> Any:
    value = look_up(row.values, column)
    if value is not MISSING:
        return value
    if field in FIELDS[form.name][0]:
        raise DataError(
            f'{row.place} has no column "{column}"; it has {list_names(list(row.values))}.'
        )
    return None


def field_text(row: Row, form: RowFormat, field: str) -> str:
    """Text of a field; empty for an optional one that is not there."""
    value = field_value(row, form, field)
    if isinstance(value, str):
        return value
    if value is None and field not in FIELDS[form.name][0]:
        return ""
    raise DataError(
        f'{row.place} has {describe(value)} in column "{form.columns[field]}", which must be text.'
    )


def describe(value: object) -> str:
    """What a value is, for a message about a wrong one."""
    if value is None:
        return "null"
    kinds = {list: "a list", dict: "an object", bool: "a boolean"}
    return kinds.get(type(value), f"the number {value}")
