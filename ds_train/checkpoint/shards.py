"""Weights in safetensors files, one tensor in memory at a time: what export reads and writes.

The safetensors library writes a file from a dictionary that holds every tensor of it. Sizes are
known beforehand, so `write_shard` puts the header first and then lets one tensor after the other
pass; a model of 140 GB is exported in the memory of its largest tensor.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ds_train.plan.headers import read_header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a file, before it is read or written."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize


def main_dtype(specs: Iterable[TensorSpec]) -> torch.dtype:
    """The floating-point type of most of these tensors."""
    kinds = Counter(spec.dtype for spec in specs if spec.dtype.is_floating_point)
    return kinds.most_common(1)[0][0]


class WeightFiles:
    """Tensors of several safetensors files, found by key and read one by one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.specs: dict[str, TensorSpec] = {}
        self.file_of: dict[str, Path] = {}
        for path in self.paths:
            for key, entry in read_header(path).items():
                dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
                self.specs[key] = TensorSpec(key, dtype, shape)
                self.file_of[key] = path

    def keys_of(self, path: Path) -> list[str]:
        """Keys of one file, in its order."""
        return [key for key, file in self.file_of.items() if file == path]

    def read(self, key: str) -> Tensor:
        """One tensor as it is stored."""
        with safe_open(str(self.file_of[key]), framework="pt") as file:
            return file.get_tensor(key)


def write_shard(
    path: Path,
    specs: Sequence[TensorSpec],
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file; `make(key)` gives each tensor, which is cast to its spec's dtype.

    Args:
        metadata: beside the usual entry of the header.

    Raises ValueError when a tensor has not the shape that was announced.
    """
    # Wide types first, so that every tensor begins at a multiple of its element size.
    ordered = sorted(specs, key=lambda spec: -spec.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position = 0
    for spec in ordered:
        header[spec.key] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.num_bytes],
        }
        position += spec.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for spec in ordered:
            tensor = make(spec.key)
            if tuple(tensor.shape) != spec.shape:
                raise ValueError(f"{spec.key}: shape {tuple(tensor.shape)}, not {spec.shape}")
            flat = tensor.detach().to(spec.dtype).contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
