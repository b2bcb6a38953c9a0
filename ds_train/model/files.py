"""The files of a checkpoint: which weight files there are, whether they are whole, which they are.

Reads safetensors headers only, so a folder of 140 GB is checked in a moment and without torch.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers.utils import cached_file

from ds_train.config.model import ModelConfig
from ds_train.data.fingerprint import fingerprint_files
from ds_train.errors import ModelError, quoted, reason
from ds_train.plan.headers import INDEX, SINGLE


def find_file(name_or_path: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a local folder or hub model, or None where it has none."""
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / file
        return path if path.is_file() else None
    try:
        found = cached_file(
            name_or_path,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
        )
    except OSError as error:
        raise ModelError(
            f"model.name_or_path = {quoted(name_or_path)}: no such folder here, and the hub did "
            f"not give it ({reason(error)}); name an existing folder or hub model."
        ) from None
    return Path(found) if found else None


def weight_files(name_or_path: str, revision: str | None = None) -> list[Path]:
    """The safetensors files of a model, in the order of their names; all of them exist.

    Raises:
        ModelError: there are none, or a file that the index names is missing.
    """
    single = find_file(name_or_path, SINGLE, revision)
    if single is not None:
        return [single]
    index = find_file(name_or_path, INDEX, revision)
    if index is None:
        raise ModelError(
            f"model.name_or_path = {quoted(name_or_path)}: found neither {SINGLE} nor {INDEX}; "
            "convert the weights to safetensors, or set model.init: random to train from scratch."
        )
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ModelError(
            f"model.name_or_path = {quoted(name_or_path)}: {INDEX} is no index of weight files; "
            "copy it again."
        ) from None
    paths = [(name, find_file(name_or_path, name, revision)) for name in names]
    missing = [name for name, path in paths if path is None]
    if missing:
        raise ModelError(
            f"model.name_or_path = {quoted(name_or_path)}: {INDEX} names {len(names)} files, but "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; copy the model "
            "folder again."
        )
    return [path for _, path in paths if path is not None]


def base_fingerprint(config: ModelConfig) -> str:
    """What a checkpoint remembers of the weights it was trained from."""
    if config.init == "random":
        return "random"
    return fingerprint_files(weight_files(config.name_or_path, config.revision))
