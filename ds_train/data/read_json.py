"""Rows of JSON lines and of JSON files: (position, row), where a message can name the position."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from ds_train.data.read_text import decode
from ds_train.errors import DataError, shorten

_LFS_POINTER = "version https://git-lfs"


def read_json_lines(stream: BinaryIO, where: str) -> Iterator[tuple[str, Any]]:
    """(position, value) of every line that is not empty."""
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        position = f"line {number:,}"
        text = decode(line, where, position)
        try:
            value = json.loads(text.rstrip())
        except ValueError as error:
            if number == 1 and text.startswith(_LFS_POINTER):
                raise DataError(
                    f"{where}: is a Git LFS pointer, not the data; run git lfs pull where it was "
                    "cloned."
                ) from None
            raise DataError(
                f"{where}: {position} is not valid JSON ({_json_fault(error)}): "
                f"{shorten(text.strip())}"
            ) from None
        yield position, value


def _json_fault(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1:,}"
    return str(error)


def read_json(stream: BinaryIO, where: str) -> Iterator[tuple[str, Any]]:
    """A list of objects, {"data": [...]}, or JSON lines under the wrong ending."""
    text = decode(stream.read(), where, "the file")
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            lines = (line.encode() for line in text.split("\n"))
            yield from read_json_lines(cast(BinaryIO, lines), where)
            return
        raise DataError(
            f"{where}: not valid JSON ({error.msg} in line {error.lineno:,}, "
            f"column {error.colno:,})."
        ) from None
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        found = f"is a {json_kind(rows)}"
        if isinstance(value, dict):
            found = f"object has the keys {', '.join(value)}"
        raise DataError(
            f'{where}: JSON must be a list of objects, or an object whose "data" is one; '
            f"this {found}."
        )
    for number, row in enumerate(rows, 1):
        yield f"entry {number:,}", row


def json_kind(value: object) -> str:
    """What a value is called in JSON, other than an object."""
    kinds = {list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return kinds.get(type(value), "null")
