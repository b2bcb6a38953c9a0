"""A file's bytes, decompressed according to its ending, and the text that they are."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from ds_train.errors import DataError

BROKEN_COMPRESSION = (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)


def open_binary(file: Path, where: str) -> BinaryIO:
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


def decode(data: bytes, where: str, position: str) -> str:
    """UTF-8 with or without a byte order mark; DataError names the byte that is none."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: {position} is not UTF-8 text (byte 0x{data[error.start]:02x} at byte "
            f"{error.start:,}); convert it, for example with `iconv -f latin1 -t utf-8`."
        ) from None
