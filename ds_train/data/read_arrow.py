"""Rows of Arrow tables: Parquet files, and datasets saved to disk or of the hub.

The packages that read them are slow to import, so that only what needs them does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_train.data.sources import Source
from ds_train.errors import DataError

_BATCH_ROWS = 1000


def read_parquet(file: Path, where: str) -> Iterator[tuple[str, Any]]:
    """(position, row) of every row of a Parquet file."""
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

    where, config = source.place, source.config
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


def read_dataset(dataset: Any) -> Iterator[tuple[str, Any]]:
    """(position, row) of every row of an opened dataset."""
    number = itertools.count(1)
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        for row in table.to_pylist():
            yield f"row {next(number):,}", row
