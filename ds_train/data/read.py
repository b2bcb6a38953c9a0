"""Rows of a source, one after the other, each with the place that a message can name.

JSONL, JSON, CSV, TSV, Parquet and text files, compressed or not; datasets saved to disk; datasets
of the hub. Rows come lazily: a file is never held whole, except JSON and text, whose unit it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_train.data.read_arrow import open_dataset, read_dataset, read_parquet
from ds_train.data.read_csv import read_csv
from ds_train.data.read_json import json_kind, read_json, read_json_lines
from ds_train.data.read_text import BROKEN_COMPRESSION, decode, open_binary
from ds_train.data.sources import Source, data_suffix
from ds_train.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in the data."""

    values: dict[str, Any]
    ordinal: int
    """Number in its source, from 0."""
    place: str
    """Beginning of a message about it: `data.train[1].path = "chats.jsonl": line 212`."""
    size: int
    """Rough number of characters."""


def read_rows(source: Source) -> Iterator[Row]:
    """Rows of a source in order, at most max_samples; DataError names the place of a fault."""
    ordinals = itertools.count()
    rows = itertools.islice(_all_rows(source, ordinals), source.config.max_samples)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source.place}: no rows; an empty source can't be trained on.")
    yield first
    yield from rows


def _all_rows(source: Source, ordinals: Iterator[int]) -> Iterator[Row]:
    if source.kind == "files":
        for file in source.files:
            where = f'{source.field}.path = "{file}"'
            yield from _numbered(_read_file(file, where), ordinals, where)
    else:
        dataset = open_dataset(source)
        yield from _numbered(read_dataset(dataset), ordinals, source.place)


def _numbered(
    values: Iterator[tuple[str, Any]], ordinals: Iterator[int], where: str
) -> Iterator[Row]:
    for position, one in values:
        place = f"{where}: {position}"
        if not isinstance(one, dict):
            raise DataError(
                f"{place} is a {json_kind(one)}, not an object with named fields "
                '(for example {"prompt": "...", "completion": "..."}).'
            )
        size = sum(len(value) if isinstance(value, str) else 100 for value in one.values())
        yield Row(one, next(ordinals), place, size)


def _read_file(file: Path, where: str) -> Iterator[tuple[str, Any]]:
    """(position, row) of every row of a file."""
    suffix = data_suffix(file)
    try:
        if suffix == ".parquet":
            yield from read_parquet(file, where)
            return
        with open_binary(file, where) as stream:
            if suffix in (".jsonl", ".ndjson"):
                yield from read_json_lines(stream, where)
            elif suffix == ".json":
                yield from read_json(stream, where)
            elif suffix in (".csv", ".tsv"):
                yield from read_csv(stream, "," if suffix == ".csv" else "\t", where)
            else:
                text = decode(stream.read(), where, "the file")
                if text:
                    yield "the file", {"text": text}
    except BROKEN_COMPRESSION as error:
        raise DataError(f"{where}: can't be decompressed ({error}).") from error
    except OSError as error:
        raise DataError(f"{where}: can't be read ({error.strerror or error}).") from error
