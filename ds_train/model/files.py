"""The files of a checkpoint: which weight files there are, whether they are whole, which they are.

Reads safetensors headers only, so a folder of 140 GB is checked in a moment and without torch.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ds_train.config.model import ModelConfig
from ds_train.data.fingerprint import fingerprint_files
from ds_train.errors import ModelError, quoted, reason

LFS_POINTER = b"version https://git-lfs"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


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


def read_header(path: Path) -> dict[str, Any]:
    """Tensor name -> {dtype, shape, data_offsets} of a safetensors file, checked against its size.

    Raises:
        ModelError: the file is cut off or is not a safetensors file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                raise ModelError(
                    f"{path}: is a Git LFS pointer, not the weights; run git lfs pull in "
                    f"{quoted(path.parent)}."
                )
            if size < 8:
                raise ValueError(f"it has {size} bytes")
            (length,) = struct.unpack("<Q", start[:8])
            if length > size - 8:
                raise ValueError("its header is longer than the file")
            file.seek(8)
            header: dict[str, Any] = json.loads(file.read(length))
    except ValueError as error:
        raise ModelError(
            f"{path}: is not a safetensors file ({reason(error)}); copy it again."
        ) from None
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise ModelError(
            f"{path}: is cut off: its header tells of {8 + length + end:,} bytes, the file has "
            f"{size:,}; copy it again."
        )
    return header


def base_fingerprint(config: ModelConfig) -> str:
    """What a checkpoint remembers of the weights it was trained from."""
    if config.init == "random":
        return "random"
    return fingerprint_files(weight_files(config.name_or_path, config.revision))
