"""The base model's weight files seen by parameter name: prefixes, and tensors with two names.

Files may name a tensor without the backbone's prefix (`h.0.ln_1.weight` for
`transformer.h.0.ln_1.weight`), and hold tied tensors once, under either name or both.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ds_train.checkpoint.merge import tied_groups
from ds_train.checkpoint.shards import WeightFiles, main_dtype
from ds_train.errors import CheckpointError


class BaseFiles:
    """Weight files of `model`, a skeleton that has its names, shapes and ties."""

    def __init__(self, paths: list[Path], model: nn.Module) -> None:
        self.weights = WeightFiles(paths)
        named = model.named_parameters(remove_duplicate=False)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in named}
        self._groups = {name: group for group in tied_groups(model) for name in group}
        prefix = f"{getattr(model, 'base_model_prefix', '')}."
        self._own_key: dict[str, str] = {}
        for name in self.shapes:
            for key in (name, name.removeprefix(prefix), prefix + name):
                if key in self.weights.specs:
                    self._own_key[name] = key
                    break

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of most tensors."""
        return main_dtype(self.weights.specs.values())

    def same(self, name: str) -> tuple[str, ...]:
        """All names of the tensor that `name` is one name of."""
        return self._groups.get(name, (name,))

    def own_key(self, name: str) -> str | None:
        """The key that this very name has in the files."""
        return self._own_key.get(name)

    def keys(self, name: str) -> list[str]:
        """Keys of the tensor under all of its names, the name's own first; may be empty."""
        names = sorted(self.same(name), key=lambda other: other != name)
        return [self._own_key[one] for one in names if one in self._own_key]

    def read(self, name: str) -> Tensor:
        """The parameter as it is stored.

        Raises:
            CheckpointError: the files do not have it.
        """
        keys = self.keys(name)
        if not keys:
            raise CheckpointError(f"the base model's files have no tensor for {name}")
        return self.weights.read(keys[0])
