"""Rows of a source, one after the other, each with the place that a message can name.

JSONL, JSON, CSV, TSV, Parquet and text files, compressed or not; datasets saved to disk; datasets
of the hub. Rows come lazily: a file is never held whole, except JSON and text, whose unit it is.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib.util
import itertools
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ds_train.data.sources import Source, data_suffix
from ds_train.errors import DataError

_LFS_POINTER = "version https://git-lfs"
_BATCH_ROWS = 1000
_BROKEN_COMPRESSION = (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)


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
        raise DataError(f"{_where(source)}: no rows; an empty source can't be trained on.")
    yield first
    yield from rows


def _where(source: Source) -> str:
    path = source.config.path
    return f'{source.field}.path = "{path if isinstance(path, str) else path[0]}"'


def _all_rows(source: Source, ordinals: Iterator[int]) -> Iterator[Row]:
    if source.kind == "files":
        for file in source.files:
            where = f'{source.field}.path = "{file}"'
            yield from _numbered(_read_file(file, where), ordinals, where)
    else:
        dataset = open_dataset(source)
        yield from _numbered(_read_dataset(dataset), ordinals, _where(source))


def _numbered(
    values: Iterator[tuple[str, Any]], ordinals: Iterator[int], where: str
) -> Iterator[Row]:
    for position, one in values:
        place = f"{where}: {position}"
        if not isinstance(one, dict):
            raise DataError(
                f"{place} is a {_json_kind(one)}, not an object with named fields "
                '(for example {"prompt": "...", "completion": "..."}).'
            )
        size = sum(len(value) if isinstance(value, str) else 100 for value in one.values())
        yield Row(one, next(ordinals), place, size)


def _json_kind(value: object) -> str:
    kinds = {list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return kinds.get(type(value), "null")


def _read_file(file: Path, where: str) -> Iterator[tuple[str, Any]]:
    """(position, row) of every row of a file."""
    suffix = data_suffix(file)
    try:
        if suffix == ".parquet":
            yield from _read_parquet(file, where)
            return
        with _open_binary(file, where) as stream:
            if suffix in (".jsonl", ".ndjson"):
                yield from _read_json_lines(stream, where)
            elif suffix == ".json":
                yield from _read_json(stream, where)
            elif suffix in (".csv", ".tsv"):
                yield from _read_csv(stream, "," if suffix == ".csv" else "\t", where)
            else:
                text = _decode(stream.read(), where, "the file")
                if text:
                    yield "the file", {"text": text}
    except _BROKEN_COMPRESSION as error:
        raise DataError(f"{where}: can't be decompressed ({error}).") from error
    except OSError as error:
        raise DataError(f"{where}: can't be read ({error.strerror or error}).") from error


def _open_binary(file: Path, where: str) -> BinaryIO:
    """The file's bytes, decompressed according to its ending."""
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(file, "rb"))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.open(file, "rb"))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(file, "rb"))
    if suffix == ".zst":
        if importlib.util.find_spec("zstandard") is None:
            raise DataError(
                f"{where}: .zst files need a package that is not installed; "
                "`pip install zstandard`, or decompress the file with `zstd -d`."
            )
        return cast(BinaryIO, importlib.import_module("zstandard").open(file, "rb"))
    return file.open("rb")


def _decode(data: bytes, where: str, position: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: {position} is not UTF-8 text (byte 0x{data[error.start]:02x} at byte "
            f"{error.start:,}); convert it, for example with `iconv -f latin1 -t utf-8`."
        ) from None


def _read_json_lines(stream: BinaryIO, where: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        position = f"line {number:,}"
        text = _decode(line, where, position)
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


def shorten(text: str, limit: int = 80) -> str:
    """A text for a message: its beginning, where it is long."""
    return text if len(text) <= limit else text[:limit] + "..."


def _read_json(stream: BinaryIO, where: str) -> Iterator[tuple[str, Any]]:
    """A list of objects, {"data": [...]}, or JSON lines under the wrong ending."""
    text = _decode(stream.read(), where, "the file")
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            lines = (line.encode() for line in text.split("\n"))
            yield from _read_json_lines(cast(BinaryIO, lines), where)
            return
        raise DataError(
            f"{where}: not valid JSON ({error.msg} in line {error.lineno:,}, "
            f"column {error.colno:,})."
        ) from None
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(
            f'{where}: JSON must be a list of objects, or an object whose "data" is one; '
            f"this is a {_json_kind(rows)}."
            if not isinstance(value, dict)
            else f'{where}: JSON must be a list of objects, or an object whose "data" is one; '
            f"this object has the keys {', '.join(value)}."
        )
    for number, row in enumerate(rows, 1):
        yield f"entry {number:,}", row


def _read_csv(stream: BinaryIO, delimiter: str, where: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    lines = (_decode(line, where, f"line {n:,}") for n, line in enumerate(stream, 1))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: line {reader.line_num:,} has {len(cells)} cells, but the header "
                    f"has {len(header)} ({', '.join(header)})."
                )
            yield f"line {reader.line_num:,}", dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{where}: line {reader.line_num:,} is broken ({error}).") from None


def _read_parquet(file: Path, where: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa  # 0.2 s to import, and only Parquet needs it
    import pyarrow.parquet as pq

    number = itertools.count(1)
    try:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield f"row {next(number):,}", row
    except pa.ArrowException as error:
        raise DataError(f"{where}: not a readable Parquet file ({error}).") from error


def open_dataset(source: Source) -> Any:
    """`datasets.Dataset` of a saved or hub source; DataError when it can't be had."""
    import datasets  # 1.5 s to import, and only these sources need it

    where, config = _where(source), source.config
    try:
        if source.kind == "saved":
            found = datasets.load_from_disk(str(source.files[0]))
        else:
            path = config.path if isinstance(config.path, str) else config.path[0]
            found = datasets.load_dataset(path, config.subset, split=config.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        if source.kind == "saved":
            raise DataError(f"{where}: the saved dataset can't be opened ({reason}).") from error
        raise DataError(
            f"{where}: no such file, and the hub dataset can't be loaded ({reason}); "
            "check the name, the connection, or save the dataset to a folder with save_to_disk."
        ) from error
    if isinstance(found, dict):
        if config.split not in found:
            raise DataError(
                f'{source.field}.split = "{config.split}": the dataset has the splits '
                f"{', '.join(found)}."
            )
        found = found[config.split]
    return found


def _read_dataset(dataset: Any) -> Iterator[tuple[str, Any]]:
    number = itertools.count(1)
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        for row in table.to_pylist():
            yield f"row {next(number):,}", row
