"""Difficulty that stands in the source rows, or that a function of the user reads off them.

The sources are read again, row by row; the samples that a row was split into share its value. Rows
of which no sample trains (dropped, held out) are passed over.

A function is taken to be pure. Its values are computed anew when the file of its module changes;
what that file imports may change without being noticed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ds_train.config.data import DataConfig
from ds_train.curriculum.metrics.spec import MetricSpec
from ds_train.curriculum.metrics.tokens import Floats
from ds_train.data.columns import MISSING, look_up
from ds_train.data.read import Row, read_rows
from ds_train.data.sources import Source, list_names, resolve_sources
from ds_train.data.store import TokenStore
from ds_train.data.workers import Worker, run_tasks
from ds_train.errors import ConfigError, DataError, quoted, reason, shorten

_CHUNK_ROWS = 500
_FEW_ROWS = 2_000
"""A function is called on fewer rows than this in the process itself."""


def row_difficulty(
    spec: MetricSpec, data: DataConfig, store: TokenStore, num_workers: int
) -> Floats:
    """float64 [N]: the value of each sample's row.

    Raises:
        ConfigError: the function can't be imported; DataError: a row without a number, with the
        file and the place in it.
    """
    make: Callable[[MetricSpec], Worker] = RowReader if spec.kind == "column" else RowCaller
    few = spec.kind == "column" or store.num_samples < _FEW_ROWS
    tasks = _chunks(rows_of_samples(data, store))
    results = run_tasks(make, (spec,), tasks, 1 if few else num_workers, doing="scoring")
    hidden = not sys.stderr.isatty()
    of_rows: list[float] = []
    with tqdm(desc=spec.kind, unit=" rows", file=sys.stderr, disable=hidden) as bar:
        for values in results:
            of_rows += values
            bar.update(len(values))
    return np.array(of_rows, np.float64)[row_numbers(store)]


def rows_of_samples(data: DataConfig, store: TokenStore) -> Iterator[Row]:
    """Each row that a sample of the store was made from, once, in the order of the store."""
    for index, source in enumerate(resolve_sources(data)):
        yield from _named_rows(source, np.unique(store.ordinals[store.sources == index]))


def _named_rows(source: Source, ordinals: np.ndarray) -> Iterator[Row]:
    waiting = iter(ordinals.tolist())
    wanted = next(waiting, None)
    if wanted is None:
        return
    for row in read_rows(source):
        if row.ordinal == wanted:
            yield row
            wanted = next(waiting, None)
            if wanted is None:
                return
    raise DataError(f"{source.field} ({source.name}): has lost rows since it was tokenised.")


def _chunks(rows: Iterator[Row]) -> Iterator[tuple[list[Row]]]:
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        yield (chunk,)


def row_numbers(store: TokenStore) -> np.ndarray:
    """int64 [N]: number of each sample's row among those of `rows_of_samples`.

    The samples stand in the order of their rows, so a row ends where source or ordinal changes.
    """
    ends = (np.diff(store.sources) != 0) | (np.diff(store.ordinals) != 0)
    return np.concatenate([[0], np.cumsum(ends)])


class RowReader:
    """Reads a number, or the place of a text among the levels, from a column."""

    def __init__(self, spec: MetricSpec) -> None:
        self._spec = spec

    def run(self, rows: Iterable[Row]) -> list[float]:
        """One number a row."""
        return [self._read(row) for row in rows]

    def _read(self, row: Row) -> float:
        spec, value = self._spec, look_up(row.values, self._spec.argument)
        if value is MISSING:
            near = get_close_matches(spec.argument, list(row.values), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise DataError(
                f'{row.place} has no column "{spec.argument}", which {spec.where} reads; it has '
                f"{list_names(list(row.values))}.{hint}"
            )
        if spec.levels:
            return self._level(row, value)
        number = _as_number(value)
        if number is None:
            remedy = (
                f"say what is easy and what is hard: {{column: {spec.argument}, levels: "
                f"[..., {shorten(value)}, ...]}}"
                if isinstance(value, str) and value
                else "give every row a number"
            )
            raise DataError(f"{self._found(row, value)}, which is no number; {remedy}.")
        if not math.isfinite(number):
            raise DataError(f"{self._found(row, value)}; a difficulty must be a finite number.")
        return number

    def _level(self, row: Row, value: Any) -> float:
        if str(value) not in self._spec.levels:
            known = list_names(self._spec.levels)
            raise DataError(f"{self._found(row, value)}, which is none of its levels: {known}.")
        return float(self._spec.levels.index(str(value)))

    def _found(self, row: Row, value: Any) -> str:
        shown = shorten(json.dumps(value, default=str, ensure_ascii=False))
        return f"{self._spec.where}: {row.place} has {shown}"


def _as_number(value: Any) -> float | None:
    """A number, also one written as text (CSV knows nothing else); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


class RowCaller:
    """Calls the user's function on every row."""

    def __init__(self, spec: MetricSpec) -> None:
        self._spec, self._function = spec, import_function(spec)

    def run(self, rows: Iterable[Row]) -> list[float]:
        """One number a row."""
        return [self._call(row) for row in rows]

    def _call(self, row: Row) -> float:
        where = f"{self._spec.where}: {row.place}:"
        try:
            value = self._function(row.values)
        except Exception as error:
            raise DataError(
                f"{where} the function raised {type(error).__name__}: {reason(error)}."
            ) from error
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise DataError(f"{where} the function gave {value!r}, which is no number.") from None
        if not math.isfinite(number):
            raise DataError(
                f"{where} the function gave {number}; a difficulty must be a finite number."
            )
        return number


def import_function(spec: MetricSpec) -> Callable[[dict[str, Any]], float]:
    """The function of {python: "package.module:function"}, also from the working directory.

    Raises:
        ConfigError: there is no such module or function, or importing it fails.
    """
    module_name, _, name = spec.argument.partition(":")
    find_module(spec)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"{spec.where}: importing {module_name} raised {type(error).__name__}: {reason(error)}."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        has = [own for own in vars(module) if callable(vars(module)[own]) and own[0] != "_"]
        near = get_close_matches(name, has, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{spec.where}: {module_name} has no function {quoted(name)}.{hint}")
    return function


def find_module(spec: MetricSpec) -> Path | None:
    """File of the module that {python: ...} names, without running it; None for one without a file.

    Raises:
        ConfigError: Python finds no such module.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    module_name, _, _ = spec.argument.partition(":")
    importlib.invalidate_caches()
    try:
        found = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):  # the package that it lies in is not there
        found = None
    if found is None:
        raise ConfigError(
            f"{spec.where}: there is no module {module_name} in {here}, nor among the installed "
            'packages; write "package.module:function".'
        )
    return Path(found.origin) if found.origin and Path(found.origin).is_file() else None
