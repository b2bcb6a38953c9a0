"""From the columns of a row to a conversation, a completion or a document.

A format is a list of fields; the recipe's `columns` says which column holds a field, by name or by
a path into nested data (`output: instances.0.output`). Without `format` it is found from the
columns of the first row, and said.
"""

from __future__ import annotations

import difflib

from ds_train.config.data import LABELLED_FORMATS, Format
from ds_train.data.columns import FIELDS, MISSING, RowFormat, field_text, field_value, look_up
from ds_train.data.labelled import read_labelled
from ds_train.data.messages import parse_openai, parse_sharegpt, parse_tools
from ds_train.data.read import Row
from ds_train.data.sources import Source, list_names
from ds_train.data.types import Completion, Conversation, Document, Message, Sample
from ds_train.errors import DataError


def choose_format(source: Source, first: Row, *, has_template: bool) -> RowFormat:
    """The format that the recipe names, or the one that the first row's columns show."""
    config = source.config
    name, how = (config.format, "named in the recipe") if config.format else _detect(source, first)
    required, optional = FIELDS[name]
    _check_settings(source, name, required + optional)
    columns: dict[str, str | list[str]] = {}
    for field in required + optional:
        column = config.columns.get(field, field)
        absent = _absent(first, column)
        if absent is None or field in config.columns or field in required:
            columns[field] = column
        if absent is not None and (field in config.columns or field in required):
            raise DataError(_no_column(source, first, name, field, absent))
    as_chat = name in ("messages", "sharegpt")
    if name in ("alpaca", "question_answer"):
        as_chat = has_template
        how += ", as conversations" if has_template else ", as plain text (no chat template)"
    return RowFormat(name, how, columns, as_chat)


def _detect(source: Source, first: Row) -> tuple[Format, str]:
    config, values = source.config, first.values
    candidates: list[Format] = []
    for name, (required, optional) in FIELDS.items():
        mapped = set(config.columns)
        present = all(
            _absent(first, config.columns.get(field, field)) is None for field in required
        )
        if present and mapped <= {*required, *optional}:
            candidates.append(name)
    if "classification" in candidates and "text" in candidates:
        candidates.remove("text")
    if len(candidates) == 1:
        columns = [_shown(config.columns.get(field, field)) for field in FIELDS[candidates[0]][0]]
        noun = "column" if len(columns) == 1 else "columns"
        return candidates[0], f"found from the {noun} {' and '.join(columns)}"
    known = "; ".join(f"{name} ({', '.join(req)})" for name, (req, _) in FIELDS.items())
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
        if isinstance(source.config.columns[field], list) and field != "choices":
            raise DataError(
                f"{source.field}.columns.{field}: must be one column; only choices may be several."
            )
    for setting, formats in (("labels", LABELLED_FORMATS[:1]), ("template", LABELLED_FORMATS)):
        if getattr(source.config, setting) and name not in formats:
            raise DataError(
                f"{source.field}.{setting}: only format {' or '.join(formats)} has it; "
                f"this source has format {name}."
            )


def _absent(row: Row, columns: str | list[str]) -> str | None:
    """The first of the columns that the row does not have."""
    names = [columns] if isinstance(columns, str) else columns
    return next((name for name in names if look_up(row.values, name) is MISSING), None)


def _shown(columns: str | list[str]) -> str:
    return columns if isinstance(columns, str) else ", ".join(columns)


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


def convert(row: Row, source: Source, form: RowFormat) -> Sample:
    """What a row stands for; DataError names the place and the column of a wrong value."""
    if form.name == "messages":
        messages = parse_openai(field_value(row, form, "messages"), row.place)
        return Conversation(messages, parse_tools(field_value(row, form, "tools"), row.place))
    if form.name == "sharegpt":
        messages = parse_sharegpt(field_value(row, form, "conversations"), row.place)
        tools = parse_tools(field_value(row, form, "tools"), row.place)
        return Conversation((*_system(row, form), *messages), tools)
    if form.name == "alpaca":
        return _alpaca(row, form)
    if form.name == "question_answer":
        question, answer = field_text(row, form, "question"), field_text(row, form, "answer")
        if form.as_chat:
            turns = (Message("user", question), Message("assistant", answer))
            return Conversation((*_system(row, form), *turns))
        return Completion(f"Question: {question}\nAnswer:", f" {answer}")
    if form.name == "prompt_completion":
        return Completion(field_text(row, form, "prompt"), field_text(row, form, "completion"))
    if form.name in LABELLED_FORMATS:
        example = read_labelled(row, source, form)
        return example.completion(0, example.gold)
    return Document(field_text(row, form, "text"))


def _system(row: Row, form: RowFormat) -> tuple[Message, ...]:
    text = field_text(row, form, "system")
    return (Message("system", text),) if text else ()


def _alpaca(row: Row, form: RowFormat) -> Sample:
    instruction, extra = field_text(row, form, "instruction"), field_text(row, form, "input")
    output = field_text(row, form, "output")
    if form.as_chat:
        question = f"{instruction}\n\n{extra}" if extra else instruction
        turns = (Message("user", question), Message("assistant", output))
        return Conversation((*_system(row, form), *turns))
    system = field_text(row, form, "system")
    parts = [f"{system}\n\n" if system else "", f"### Instruction:\n{instruction}\n\n"]
    parts += [f"### Input:\n{extra}\n\n" if extra else "", "### Response:\n"]
    return Completion("".join(parts), output)
