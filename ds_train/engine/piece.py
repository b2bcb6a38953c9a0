"""A part of a trained parameter, as a rank holds it and as checkpoints store it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `start` + n of a parameter, counted as if it were flat."""

    name: str
    """Of the parameter, in the model inside our wrapper."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    tensors: State
    """The fp32 weight "param" and the optimizer's tensors, [n] each. Those of a whole parameter may
    have its shape, and Adafactor's have shapes of their own."""

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the parameter."""
        return self.tensors["param"].numel() == prod(self.shape)

    def copy(self) -> Piece:
        """With tensors of its own."""
        return replace(self, tensors={key: one.clone() for key, one in self.tensors.items()})


class SavedStates(Protocol):
    """Where saved states are read from."""

    def keys_of(self, name: str) -> Iterable[str]:
        """Tensors of a parameter: "param", "exp_avg", ..."""

    def read(self, name: str, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements `start` to `stop` of one of them [n] fp32; or all, in its own shape."""
