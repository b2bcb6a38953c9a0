"""The state files of a checkpoint: pieces of parameters, written by the ranks that hold them.

A tensor of a whole parameter is stored in its shape as "<parameter>|<tensor>"; a part of one, flat,
as "<parameter>|<tensor>|<first element>", and the shapes of parameters are in the file's metadata.
Everything is fp32. Whoever reads asks for the elements that it wants, in whatever files they lie.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ds_train.checkpoint.folder import CheckpointFacts, read_facts
from ds_train.checkpoint.shards import TensorSpec, write_shard
from ds_train.engine.piece import Piece
from ds_train.errors import CheckpointError, quoted

_SEPARATOR = "|"
_SHAPES = "shapes"


@dataclass
class Share:
    """What one rank writes of a checkpoint."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Key in the file -> its values, of any dtype and on any device, perhaps views."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the whole parameters of which there is a part only."""
    on_write: Callable[[], None] = lambda: None
    """Called before each tensor that is written."""

    def add(self, piece: Piece) -> None:
        """Take it up as it is, without a copy."""
        start = "" if piece.is_whole else f"{_SEPARATOR}{piece.start}"
        for key, tensor in piece.tensors.items():
            if piece.is_whole and tensor.numel() == prod(piece.shape):
                tensor = tensor.view(piece.shape)
            self.tensors[f"{piece.name}{_SEPARATOR}{key}{start}"] = tensor
        if not piece.is_whole:
            self.shapes[piece.name] = piece.shape

    def copy_to_host(self) -> None:
        """Let no tensor be the run's own any more."""
        for key, tensor in self.tensors.items():
            self.tensors[key] = torch.empty_like(tensor, device="cpu").copy_(tensor)


def save_share(path: Path, share: Share) -> None:
    """Write a rank's file, one tensor in memory at a time; on return it is on disk."""
    specs = [TensorSpec(k, torch.float32, tuple(t.shape)) for k, t in share.tensors.items()]

    def value(key: str) -> Tensor:
        share.on_write()
        return share.tensors[key].cpu()

    write_shard(path, specs, value, {_SHAPES: json.dumps(share.shapes)})


@dataclass(frozen=True)
class _Part:
    path: Path
    key: str
    start: int
    stop: int


class StateFiles:
    """The state of a checkpoint, found by the parameter's name."""

    def __init__(self, folder: Path, facts: CheckpointFacts | None = None) -> None:
        """Looks at the names of what is there; reads no value.

        Raises:
            CheckpointError: a file is missing, or is no safetensors file.
        """
        self.folder = folder
        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        self._parts: dict[str, dict[str, list[_Part]]] = {}
        self._open: dict[Path, Any] = {}
        for name in (facts or read_facts(folder)).state_files:
            self._index(folder / "state" / name)

    def _index(self, path: Path) -> None:
        try:
            file = self._open[path] = safe_open(str(path), framework="pt")
            shapes = json.loads((file.metadata() or {}).get(_SHAPES, "{}"))
            for entry in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                self._add(path, entry, tuple(file.get_slice(entry).get_shape()), shapes)
        except (OSError, ValueError, SafetensorError) as error:
            raise self._damaged(path, error) from None

    def _add(
        self, path: Path, entry: str, stored: tuple[int, ...], shapes: Mapping[str, list[int]]
    ) -> None:
        name, key, *more = entry.split(_SEPARATOR)
        start = int(more[0]) if more else 0
        self._shapes[name, key] = tuple(shapes[name]) if more else stored
        parts = self._parts.setdefault(name, {}).setdefault(key, [])
        parts.append(_Part(path, entry, start, start + prod(stored)))

    @property
    def names(self) -> set[str]:
        """Of all parameters that were trained."""
        return set(self._parts)

    def keys_of(self, name: str) -> Iterable[str]:
        """Tensors of a parameter: "param", "exp_avg", ..."""
        return self._parts[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole parameter."""
        return self._shapes[name, "param"]

    def read(
        self, name: str, key: str = "param", start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Elements `start` to `stop` of a tensor [n] fp32; or all of it, in its own shape.

        Raises:
            CheckpointError: they are not there.
        """
        if key not in self._parts[name]:
            raise CheckpointError(
                f"{quoted(self.folder)} has no {key} of {name}, which this optimizer needs; it has "
                f"{', '.join(sorted(self._parts[name]))}. Was it trained with another train.optim?"
            )
        shape = self._shapes[name, key]
        end = prod(shape) if stop is None else stop
        values, num_found = torch.empty(end - start), 0
        for part in self._parts[name][key]:
            first, last = max(start, part.start), min(end, part.stop)
            if first < last:
                found = self._values(part)[first - part.start : last - part.start]
                values[first - start : last - start] = found
                num_found += last - first
        if num_found != end - start:
            raise CheckpointError(
                f"{quoted(self.folder)} holds {num_found:,} of {end - start:,} elements of {name}, "
                f"{key}. Remove that folder to go on from the checkpoint before it."
            )
        return values.view(shape) if stop is None else values

    def _values(self, part: _Part) -> Tensor:
        try:
            whole: Tensor = self._open[part.path].get_tensor(part.key)
        except (OSError, SafetensorError) as error:
            raise self._damaged(part.path, error) from None
        return whole.view(-1)

    def _damaged(self, path: Path, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{quoted(path)} is missing or damaged ({error}). Remove the checkpoint folder "
            f"{self.folder.name} to go on from the one before it."
        )
