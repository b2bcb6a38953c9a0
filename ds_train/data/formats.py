"""From the columns of a row to a conversation, a completion or a document.

A format is a list of fields; the recipe's `columns` says which column holds a field, by name or by
a path into nested data (`output: instances.0.output`). Without `format` it is found from the
columns of the first row, and said.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ds_train.config.data import Format
from ds_train.data.messages import parse_openai, parse_sharegpt, parse_tools
from ds_train.data.read import Row
from ds_train.data.sources import Source, list_names
from ds_train.data.types import Completion, Conversation, Document, Message, Sample
from ds_train.errors import DataError

_FIELDS: dict[Format, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ("tools",)),
    "sharegpt": (("conversations",), ("tools", "system")),
    "alpaca": (("instruction", "output"), ("input", "system")),
    "prompt_completion": (("prompt", "completion"), ()),
    "question_answer": (("question", "answer"), ("system",)),
    "text": (("text",), ()),
    "classification": (("text", "label"), ()),
}
"""Of each format: the fields that every row has, and those that it may have."""

CLASSIFICATION_TEMPLATE = "{text}\nLabel:"
MISSING = object()


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How the rows of one source are read."""

    name: Format
    how: str
    """Why it was chosen, for the audit."""
    columns: Mapping[str, str]
    """Column (or path) of every field that the source has."""
    as_chat: bool
    """Instructions and questions become conversations, since there is a chat template."""


def choose_format(source: Source, first: Row, *, has_template: bool) -> RowFormat:
    """The format that the recipe names, or the one that the first row's columns show."""
    config = source.config
    name, how = (config.format, "named in the recipe") if config.format else _detect(source, first)
    required, optional = _FIELDS[name]
    _check_settings(source, name, required + optional)
    columns = {}
    for field in required + optional:
        column = config.columns.get(field, field)
        found = look_up(first.values, column) is not MISSING
        if found or field in config.columns or field in required:
            columns[field] = column
        if not found and (field in config.columns or field in required):
            raise DataError(_no_column(source, first, name, field, column))
    as_chat = name in ("messages", "sharegpt")
    if name in ("alpaca", "question_answer"):
        as_chat = has_template
        how += ", as conversations" if has_template else ", as plain text (no chat template)"
    return RowFormat(name, how, columns, as_chat)


def _detect(source: Source, first: Row) -> tuple[Format, str]:
    config, values = source.config, first.values
    candidates: list[Format] = []
    for name, (required, optional) in _FIELDS.items():
        mapped = set(config.columns)
        present = all(
            look_up(values, config.columns.get(field, field)) is not MISSING for field in required
        )
        if present and mapped <= {*required, *optional}:
            candidates.append(name)
    if "classification" in candidates and "text" in candidates:
        candidates.remove("text")
    if len(candidates) == 1:
        columns = [config.columns.get(field, field) for field in _FIELDS[candidates[0]][0]]
        noun = "column" if len(columns) == 1 else "columns"
        return candidates[0], f"found from the {noun} {' and '.join(columns)}"
    known = "; ".join(f"{name} ({', '.join(req)})" for name, (req, _) in _FIELDS.items())
    has = f"has the columns {list_names(list(values))}"
    if candidates:
        raise DataError(
            f"{first.place} {has}, which fit several formats: {', '.join(candidates)}; "
            f"choose one with {source.field}.format."
        )
    raise DataError(
        f"{first.place} {has}, which fit no known format; set {source.field}.format and "
        f"{source.field}.columns. Formats and their fields: {known}."
    )


def _check_settings(source: Source, name: Format, fields: tuple[str, ...]) -> None:
    for field in source.config.columns:
        if field not in fields:
            near = difflib.get_close_matches(field, fields, n=1)
            raise DataError(
                f"{source.field}.columns.{field}: format {name} has no such field; it has "
                f"{', '.join(fields)}.{f' Did you mean {near[0]}?' if near else ''}"
            )
    if name == "classification":
        return
    for setting in ("labels", "template"):
        if getattr(source.config, setting):
            raise DataError(
                f"{source.field}.{setting}: only format classification has it; "
                f"this source has format {name}."
            )


def _no_column(source: Source, row: Row, name: Format, field: str, column: str) -> str:
    has = list(row.values)
    near = difflib.get_close_matches(column, has, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    if field in source.config.columns:
        return (
            f'{source.field}.columns.{field} = "{column}": no such column; '
            f"the columns are {list_names(has)}.{hint}"
        )
    return (
        f'{row.place} has no column "{column}", which format {name} needs; it has '
        f"{list_names(has)}. Name the right one: columns: {{{field}: {near[0] if near else '...'}}}"
    )


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


def convert(row: Row, source: Source, form: RowFormat) -> Sample:
    """What a row stands for; DataError names the place and the column of a wrong value."""
    if form.name == "messages":
        messages = parse_openai(_value(row, form, "messages"), row.place)
        return Conversation(messages, parse_tools(_value(row, form, "tools"), row.place))
    if form.name == "sharegpt":
        messages = parse_sharegpt(_value(row, form, "conversations"), row.place)
        tools = parse_tools(_value(row, form, "tools"), row.place)
        return Conversation((*_system(row, form), *messages), tools)
    if form.name == "alpaca":
        return _alpaca(row, form)
    if form.name == "question_answer":
        question, answer = _text(row, form, "question"), _text(row, form, "answer")
        if form.as_chat:
            turns = (Message("user", question), Message("assistant", answer))
            return Conversation((*_system(row, form), *turns))
        return Completion(f"Question: {question}\nAnswer:", f" {answer}")
    if form.name == "prompt_completion":
        return Completion(_text(row, form, "prompt"), _text(row, form, "completion"))
    if form.name == "classification":
        return _classification(row, source, form)
    return Document(_text(row, form, "text"))


def _value(row: Row, form: RowFormat, field: str) -> Any:
    """Value of a field; None for an optional one that the row or the source has not."""
    column = form.columns.get(field)
    value = MISSING if column is None else look_up(row.values, column)
    if value is not MISSING:
        return value
    if field in _FIELDS[form.name][0]:
        raise DataError(
            f'{row.place} has no column "{column}"; it has {list_names(list(row.values))}.'
        )
    return None


def _text(row: Row, form: RowFormat, field: str) -> str:
    value = _value(row, form, field)
    if isinstance(value, str):
        return value
    if value is None and field not in _FIELDS[form.name][0]:
        return ""
    raise DataError(
        f'{row.place} has {_describe(value)} in column "{form.columns[field]}", which must be text.'
    )


def _describe(value: object) -> str:
    if value is None:
        return "null"
    kinds = {list: "a list", dict: "an object", bool: "a boolean"}
    return kinds.get(type(value), f"the number {value}")


def _system(row: Row, form: RowFormat) -> tuple[Message, ...]:
    text = _text(row, form, "system")
    return (Message("system", text),) if text else ()


def _alpaca(row: Row, form: RowFormat) -> Sample:
    instruction, extra = _text(row, form, "instruction"), _text(row, form, "input")
    output = _text(row, form, "output")
    if form.as_chat:
        question = f"{instruction}\n\n{extra}" if extra else instruction
        turns = (Message("user", question), Message("assistant", output))
        return Conversation((*_system(row, form), *turns))
    system = _text(row, form, "system")
    parts = [f"{system}\n\n" if system else "", f"### Instruction:\n{instruction}\n\n"]
    parts += [f"### Input:\n{extra}\n\n" if extra else "", "### Response:\n"]
    return Completion("".join(parts), output)


def _classification(row: Row, source: Source, form: RowFormat) -> Sample:
    value = _value(row, form, "label")
    if not isinstance(value, str | int):
        raise DataError(
            f'{row.place} has {_describe(value)} in column "{form.columns["label"]}", which must '
            "be a label (text or a whole number)."
        )
    label, labels = str(value), source.config.labels
    if labels and label not in labels:
        near = difflib.get_close_matches(label, labels, n=1)
        raise DataError(
            f'{row.place} has the label "{label}", which {source.field}.labels does not know'
            f"{f'; did you mean {near[0]}?' if near else '.'} Known: {list_names(list(labels))}."
        )
    prompt = _fill(row, source, form)
    return Completion(prompt, f" {labels.get(label, label)}")


def _fill(row: Row, source: Source, form: RowFormat) -> str:
    """The template with `{text}` and other columns of the row filled in."""
    template = source.config.template or CLASSIFICATION_TEMPLATE

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name == "text":
            return _text(row, form, "text")
        value = look_up(row.values, name)
        if not isinstance(value, str | int | float):
            raise DataError(
                f"{source.field}.template: {{{name}}} is no text column; "
                f"the columns are {list_names(list(row.values))}."
            )
        return str(value)

    return re.sub(r"\{(\w+)\}", replace, template)
