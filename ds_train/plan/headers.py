"""The headers of safetensors files: names and shapes of the tensors, without a weight or torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from ds_train.errors import ModelError, quoted, reason

LFS_POINTER = b"version https://git-lfs"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


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
