"""Gradients that were made in the forward pass, times the factor that the backward pass brings."""

from __future__ import annotations

import torch
from torch import Tensor

_ELEMENTS = 2**18  # at a time, so that what is in fp32 stays in the cache


def graph_is_kept() -> bool:
    """Whether another backward pass may follow the one that runs now (`retain_graph`).

    True also where that can't be found out: while a graph is traced, or in a torch that has no such
    question (it is not part of the public interface).
    """
    if torch.compiler.is_compiling():
        return True
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or bool(ask())


def scaled(gradient: Tensor, factor: Tensor, *, in_place: bool) -> Tensor:
    """Gradient times a factor [] in fp32, rounded once.

    A factor in the gradient's own dtype would be rounded before it is used: by up to 0.4 % in
    bf16, and the same way for every element.

    Args:
        in_place: nobody will ask for `gradient` again, and it may be written over; a second one
            of the weight's size is not needed then. If False, what is returned is never `gradient`
            itself: the backward pass that comes last will write over that.
    """
    if torch.compiler.is_compiling() or type(factor) is not Tensor:  # traced: no values
        return (gradient * factor.reshape(1)).to(gradient.dtype)
    if gradient.device.type == "cpu" and factor.item() == 1.0:
        return gradient if in_place else gradient.clone()
    out = gradient if in_place else torch.empty_like(gradient)
    if gradient.device.type != "cpu":
        # mixed dtypes are converted inside the kernel, element by element
        return torch.mul(gradient, factor.reshape(1), out=out)
    flat_in, flat_out = gradient.view(-1), out.view(-1)
    for start in range(0, flat_in.numel(), _ELEMENTS):
        block = slice(start, start + _ELEMENTS)
        flat_out[block] = flat_in[block].to(factor.dtype) * factor
    return out
