"""L2-SP: what trains is pulled back to where it started, on the rank that owns it.

    loss of the step  +  weight / 2 x sum of (w - w0)^2      (Li, Grandvalet and Davoine, "Explicit
                                                             Inductive Bias for Transfer Learning
                                                             with Convolutional Networks", ICML
                                                             2018, equation 3, w0 pretrained)

Its gradient, weight x (w - w0), joins the data's right before the optimizer uses it: on the fp32
weights that each rank updates, when gradients have been reduced and clipped. So it is added once a
step, whatever the ranks, micro-batches and ZeRO stage, needs nothing gathered, and leaves the
gradient norm that is recorded and clipped to the data. w0 is kept in the model's dtype, in which it
was read and is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PullToStart:
    """Adds the penalty's gradient before every update of `optimizer`."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        partitions: Sequence[Tensor],
        *,
        weight: float,
        dtype: torch.dtype,
    ) -> None:
        """`partitions`: the fp32 tensors that this rank updates, still as they were loaded."""
        self._weight = weight
        # by identity: under ZeRO-3 the optimizer sees one of them at a time
        self._start = {id(one): one.detach().to(dtype, copy=True) for one in partitions}
        optimizer.register_step_pre_hook(self._add)

    @torch.no_grad()
    def _add(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if tensor.grad is None:
                    continue
                distance = tensor.detach() - self._start[id(tensor)].to(tensor.dtype)
                tensor.grad.add_(distance.to(tensor.grad.dtype), alpha=self._weight)
