"""Where the data files of a task's YAML file are.

A relative path in `data_files` is looked for beside the YAML file, then in the folder above
(`tasks/` beside `data/`), then in the working folder, where lm_eval itself would look; the first
that is there counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_train.errors import DataError, quoted

_REMOTE = "://"


def with_data_files(config: dict[str, Any], yaml_path: Path | None) -> dict[str, Any]:
    """A task's configuration whose local data files are absolute paths; DataError without one."""
    kwargs = config.get("dataset_kwargs") or {}
    files = kwargs.get("data_files")
    if files is None or yaml_path is None:
        return config
    folder = Path(yaml_path).resolve().parent
    places = [folder, folder.parent, Path.cwd()]
    found = _resolve(files, places, str(config.get("task")))
    return {**config, "dataset_kwargs": {**kwargs, "data_files": found}}


def _resolve(files: Any, places: list[Path], task: str) -> Any:
    if isinstance(files, Mapping):
        return {split: _resolve(one, places, task) for split, one in files.items()}
    if isinstance(files, list | tuple):
        return [_resolve(one, places, task) for one in files]
    text = str(Path(str(files)).expanduser()) if str(files).startswith("~") else str(files)
    if _REMOTE in text or Path(text).is_absolute():
        return text
    for place in places:
        if any(place.glob(text)):
            return str(place / text)
    looked = ", ".join(quoted(place) for place in dict.fromkeys(places))
    raise DataError(f"task {task}: data_files: {quoted(text)} is in none of {looked}.")
