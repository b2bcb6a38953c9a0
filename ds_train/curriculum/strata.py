"""Strata: what `curriculum.stratify_by` keeps mixed while difficulty rises.

The sources, or the values of a column, read once from the rows and kept beside the difficulties.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ds_train.config.run import RunConfig
from ds_train.curriculum.metrics.rows import row_numbers, rows_of_samples
from ds_train.curriculum.score_files import SCORES_VERSION, one_maker, open_stored, store
from ds_train.data.columns import MISSING, look_up
from ds_train.data.divide import PreparedData
from ds_train.data.fingerprint import hash_of
from ds_train.data.prepare import store_folder
from ds_train.data.read import Row
from ds_train.data.sources import list_names, resolve_sources
from ds_train.errors import DataError

Say = Callable[[str], object]


def find_strata(
    config: RunConfig, prepared: PreparedData, column: str, say: Say
) -> NDArray[np.integer]:
    """int [N]: number of the stratum of each training sample.

    Raises:
        DataError: a row without the column.
    """
    if column == "source":
        return prepared.train.sources
    folder = store_folder(config, resolve_sources(config.data)) / "difficulty"
    name = hash_of([SCORES_VERSION, prepared.fingerprint, "strata", column])
    num_samples = prepared.train.num_samples
    with one_maker(folder, name):
        found = open_stored(folder, name, num_samples, say)
        if found is None:
            numbers = _read(config, prepared, column)
            found = store(folder, name, numbers.astype(np.float32), {"strata": column})
    return found.values.astype(np.int64)


def _read(config: RunConfig, prepared: PreparedData, column: str) -> NDArray[np.int64]:
    """Values are numbered in the order of their text."""
    rows = rows_of_samples(config.data, prepared.train)
    texts = np.array([_text(row, column) for row in rows])
    of_rows = np.unique(texts, return_inverse=True)[1]
    return of_rows[row_numbers(prepared.train)].astype(np.int64)


def _text(row: Row, column: str) -> str:
    value = look_up(row.values, column)
    if value is MISSING:
        raise DataError(
            f'{row.place} has no column "{column}", which curriculum.stratify_by names; it has '
            f"{list_names(list(row.values))}."
        )
    return str(value)
