"""Only supervised rows are computed: which they are, and the way there and back."""

from __future__ import annotations

import torch
from torch import Tensor


class SupervisedRows:
    """Rows whose label is not `ignore_index`.

    With `num_supervised` known, nothing waits for the device: a number that disagrees with the
    labels makes the loss NaN. Without it, a CUDA device is asked once.
    """

    def __init__(self, labels: Tensor, ignore_index: int, num_supervised: int | None) -> None:
        mask = labels != ignore_index
        self.num_rows = labels.shape[0]
        known = num_supervised is not None and labels.device.type != "cpu"
        self._agrees: Tensor | None = None
        if known:
            assert num_supervised is not None
            self.num_supervised = num_supervised
            self._agrees = mask.sum() == num_supervised
            index = None
            if num_supervised < self.num_rows:
                index = torch.nonzero_static(mask, size=num_supervised, fill_value=0)[:, 0]
        else:
            index = mask.nonzero()[:, 0]
            self.num_supervised = len(index)
            if num_supervised is not None and num_supervised != self.num_supervised:
                raise ValueError(
                    f"linear_cross_entropy: num_supervised is {num_supervised}, and "
                    f"{self.num_supervised} labels differ from ignore_index; leave it out to "
                    "have them counted"
                )
        self._index = None if self.num_supervised == self.num_rows else index

    def take(self, values: Tensor) -> Tensor:
        """Values [n, ...] of the supervised rows."""
        return values if self._index is None else values.index_select(0, self._index)

    def take_optional(self, values: Tensor | None) -> Tensor | None:
        """The same, contiguous; None stays None."""
        return None if values is None else self.take(values).contiguous()

    def put(self, values: Tensor) -> Tensor:
        """Values of the supervised rows among zeros: [n, ...]."""
        if self._index is None:
            return values
        out = values.new_zeros(self.num_rows, *values.shape[1:])
        return out.index_copy_(0, self._index, values)

    def checked(self, loss: Tensor) -> Tensor:
        """The loss; NaN where `num_supervised` disagrees with the labels."""
        if self._agrees is None:
            return loss
        return torch.where(self._agrees, loss, torch.nan)


def check_values(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ignore_index: int,
    class_weight: Tensor | None,
    token_weights: Tensor | None,
) -> None:
    """Refuse values that can't be right; on the CPU only, as looking makes a GPU wait.

    There, a label outside the vocabulary makes its row, and so the loss, NaN.
    """
    if hidden.device.type != "cpu":
        return
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= weight.shape[0]))
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"linear_cross_entropy: labels: {int(labels[first])} at position {first} is outside "
            f"the vocabulary of {weight.shape[0]}; a position that isn't learned from has the "
            f"label {ignore_index} (ignore_index)"
        )
    for name, values in (("class_weight", class_weight), ("token_weights", token_weights)):
        if values is not None and not bool((values >= 0).all()):
            raise ValueError(f"linear_cross_entropy: {name} must be 0 or more, and not NaN")
