"""Writes safetensors files as other files are written: readable for the team, safe on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file; on return it is on disk.

    The library makes the file readable for its owner only; in a folder that a team shares nobody
    else could use the adapter. So it gets the permissions that any new file would have.
    """
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, str(path), metadata={"format": "pt"})
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
