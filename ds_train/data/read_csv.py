"""Rows of CSV and TSV files: (position, row), where a message can name the position."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from ds_train.data.read_text import decode
from ds_train.errors import DataError


def read_csv(stream: BinaryIO, delimiter: str, where: str) -> Iterator[tuple[str, Any]]:
    """(position, row) of every line below the header; cells stay text."""
    csv.field_size_limit(sys.maxsize)
    lines = (decode(line, where, f"line {n:,}") for n, line in enumerate(stream, 1))
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
