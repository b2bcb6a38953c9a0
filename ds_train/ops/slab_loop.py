"""The fused loss in fp32 on a CPU, its logits in the memory of the weight's gradient.

Nobody needs that memory before the end, and the gradient of a slab of the vocabulary, [c, d], has
room for the logits of that slab, [n, c], while there are at most about d tokens. So one pass over
the slabs makes the logits, the row kernel turns them into their gradient where they are, and a
second pass copies a slab of that aside and writes the weight's gradient over it. The products are
those of `row_loop.py`, and each is made once; beside what is returned there is one slab.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds_train.ops import native
from ds_train.ops.problem import Problem, Result, Upstream, Wanted, empty_result
from ds_train.plan.loss_chunks import SLAB_PADDING, slab_columns


def columns_of(problem: Problem, chunk_bytes: int | None) -> int | None:
    """Columns of a slab; None where `row_loop.py` has to do it.

    In 16 bits the gradient of the hidden states would be rounded after every slab.
    """
    if problem.hidden.dtype != torch.float32:
        return None
    (n, dim), vocab = problem.hidden.shape, problem.weight.shape[0]
    return slab_columns(n, dim, vocab, problem.hidden.element_size(), chunk_bytes)


def compute_in_slabs(problem: Problem, upstream: Upstream, wanted: Wanted, columns: int) -> Result:
    """Statistics of all rows, and the wanted gradients; that of the weight is among them."""
    hidden, weight = problem.hidden, problem.weight
    result = empty_result(problem, wanted)
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    aside = hidden.new_empty(hidden.shape[0], columns + SLAB_PADDING)
    parts = [slice(start, start + columns) for start in range(0, weight.shape[0], columns)]
    slabs = [_inside(grad_weight[part], aside) for part in parts[:-1]]
    # the last may be too narrow for its rows, and is the first to be turned into gradients
    slabs.append(aside[:, : weight.shape[0] - parts[-1].start])
    for part, slab in zip(parts, slabs, strict=True):
        torch.mm(hidden, weight[part].t(), out=slab)
    native.cpu_slabs(slabs, problem, upstream, result)

    if wanted.hidden:
        result.grad_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
    if wanted.bias:
        result.grad_bias = result.logprob.new_empty(weight.shape[0])
    for part, slab in zip(reversed(parts), reversed(slabs), strict=True):
        gradient = aside[:, : slab.shape[1]]
        if slab is not slabs[-1]:
            gradient.copy_(slab)
        if result.grad_hidden is not None:
            result.grad_hidden.addmm_(gradient, weight[part])
        if result.grad_bias is not None:
            torch.sum(gradient, dim=0, out=result.grad_bias[part])
        torch.mm(gradient.t(), hidden, out=grad_weight[part])
    result.grad_weight = grad_weight
    return result


def _inside(memory: Tensor, like: Tensor) -> Tensor:
    """[n, c], its rows as far apart as those of `like`, in the memory of [c, d]."""
    rows, stride = like.shape
    return memory.view(-1)[: rows * stride].view(rows, stride)[:, : memory.shape[0]]
