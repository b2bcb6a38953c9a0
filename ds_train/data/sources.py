"""What `path` of a data source stands for: files, a saved dataset, or a dataset of the hub.

Resolving looks at names only; nothing is read. Every fault of every source is reported at once.
"""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ds_train.config.data import DataConfig, SourceConfig
from ds_train.errors import DataError

KNOWN_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Source:
    """One source of the recipe, its files found."""

    field: str
    """Where it stands in the recipe: `data.train[0]`."""
    name: str
    config: SourceConfig
    kind: Literal["files", "saved", "hub"]
    files: tuple[Path, ...]
    """Files to read, in order; the folder of a saved dataset; empty for the hub."""
    validation: bool
    """Only evaluated on: a source of data.validation or data.dev."""

    @property
    def place(self) -> str:
        """Beginning of a message about it: `data.train[1].path = "chats.jsonl"`."""
        path = self.config.path
        return f'{self.field}.path = "{path if isinstance(path, str) else path[0]}"'

    @property
    def is_dev(self) -> bool:
        """A source of data.dev."""
        return self.field.startswith("data.dev.")


def resolve_sources(data: DataConfig) -> list[Source]:
    """Sources of training, of validation, of dev, in this order; DataError with every fault."""
    named = [(f"data.train[{i}]", one, False) for i, one in enumerate(data.train)]
    held_out = data.validation.sources
    named += [(f"data.validation.sources[{i}]", one, True) for i, one in enumerate(held_out)]
    dev = [] if data.dev is None else data.dev.sources
    named += [(f"data.dev.sources[{i}]", one, True) for i, one in enumerate(dev)]
    sources, faults, taken = [], [], set()
    for field, config, validation in named:
        try:
            kind, files = _resolve(field, config)
        except DataError as error:
            faults.append(str(error))
            continue
        name = config.shown_name
        if name in taken:
            name = f"{name} ({field.removeprefix('data.')})"
        taken.add(name)
        sources.append(Source(field, name, config, kind, files, validation))
    if faults:
        raise DataError("\n".join(faults))
    return sources


def _resolve(
    field: str, config: SourceConfig
) -> tuple[Literal["files", "saved", "hub"], tuple[Path, ...]]:
    paths = [config.path] if isinstance(config.path, str) else config.path
    if not paths:
        raise DataError(f"{field}.path = []: no file is named.")
    if len(paths) == 1:
        only = Path(paths[0]).expanduser()
        if is_saved_dataset(only):
            return "saved", (only,)
        if not only.exists() and is_hub_name(paths[0]):
            return "hub", ()
    files = [file for path in paths for file in _find_files(field, path)]
    return "files", tuple(files)


def is_saved_dataset(path: Path) -> bool:
    """True for a folder that `datasets.save_to_disk` made."""
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def is_hub_name(path: str) -> bool:
    """True for `name` and `owner/name` without the ending of a data file."""
    endings = KNOWN_SUFFIXES + COMPRESSED_SUFFIXES
    if not _HUB_NAME.fullmatch(path) or path.lower().endswith(endings):
        return False
    return "/" not in path or not Path(path).parent.is_dir()


def _find_files(field: str, path: str) -> list[Path]:
    where = f'{field}.path = "{path}"'
    plain = Path(path).expanduser()
    if plain.is_file():
        found = [plain]
    elif plain.is_dir():
        raise DataError(
            f"{where}: a folder, but not a saved dataset; name its files, for example "
            f'"{path.rstrip("/")}/*.jsonl".'
        )
    elif glob.has_magic(path):
        matches = sorted(glob.glob(str(plain), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        found = [one for match in matches if (one := Path(match)).is_file()]
        if not found:
            raise DataError(f"{where}: no file matches.")
    else:
        raise DataError(f"{where}: no such file{_nearest_file(plain)}")
    for file in found:
        if data_suffix(file) not in KNOWN_SUFFIXES:
            raise DataError(
                f'{field}.path = "{file}": unknown kind of file "{data_suffix(file)}"; known: '
                f"{', '.join(KNOWN_SUFFIXES)}, each also with {', '.join(COMPRESSED_SUFFIXES)}."
            )
    return found


def data_suffix(file: Path) -> str:
    """Ending that tells the kind of a file: `.jsonl` for `chats.jsonl.gz`."""
    if file.suffix.lower() in COMPRESSED_SUFFIXES:
        return Path(file.stem).suffix.lower()
    return file.suffix.lower()


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor a folder {path.parent}."
    names = [one.name for one in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {near[0]}?" if near else "."


def list_names(names: Sequence[str]) -> str:
    """Names for a message, at most twelve of them."""
    shown = ", ".join(names[:12])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 12 else shown
