"""The fused loss as a loop over row chunks: GEMM, row kernel in place, GEMMs of the gradients.

Only one chunk of logits exists at a time. With a frozen head that is two GEMMs and nothing of the
weight's size; the weight's gradient is summed over the chunks in fp32. `chunked` and `cuda` are
this loop around two row kernels, and `cpu` is too where its own GEMMs do not apply.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ds_train.ops.problem import Problem, Result, RowKernel, Upstream, Wanted, empty_result
from ds_train.plan.loss_chunks import chunk_rows

_BLOCK_ELEMENTS = 2**24


def compute_in_chunks(
    problem: Problem,
    upstream: Upstream | None,
    wanted: Wanted,
    chunk_bytes: int | None,
    *,
    row_kernel: RowKernel,
    bytes_per_logit: int,
) -> Result:
    """Statistics of all rows, and the wanted gradients if `upstream` is given.

    Args:
        chunk_bytes: room for one chunk of logits; chosen by device when None. At least one row
            is computed at a time, however small it is.
        bytes_per_logit: memory that the GEMM and the row kernel take for one logit.
    """
    hidden, weight = problem.hidden, problem.weight
    (n, d), v = hidden.shape, weight.shape[0]
    result = empty_result(problem, wanted)
    if upstream is None:
        wanted = replace(wanted, hidden=False, weight=False, bias=False)
    rows = chunk_rows(n, v * bytes_per_logit, chunk_bytes, hidden.device.type, wanted.weight)
    # a row stride of whole 16-byte words lets kernels load and store them aligned
    stride = -(-v // 8) * 8
    logits = hidden.new_empty(rows, stride)
    logits[:, v:] = 0  # bf16 GEMMs on a CPU multiply what stands there by 0: NaN must not
    logits = logits[:, :v]
    if wanted.hidden:
        result.grad_hidden = torch.empty(n, d, dtype=hidden.dtype, device=hidden.device)
    weight_sum = WeightSum(weight, num_chunks=-(-n // rows)) if wanted.weight else None
    if wanted.bias:
        result.grad_bias = torch.zeros(v, dtype=result.logprob.dtype, device=hidden.device)
    for start in range(0, n, rows):
        chunk = slice(start, min(start + rows, n))
        z = logits[: chunk.stop - start]
        torch.mm(hidden[chunk], weight.t(), out=z)
        row_kernel(z, chunk, problem, upstream, wanted, result)
        if result.grad_hidden is not None:
            torch.mm(z, weight, out=result.grad_hidden[chunk])
        if weight_sum is not None:
            weight_sum.add(z, hidden[chunk])
        if result.grad_bias is not None:
            result.grad_bias += z.sum(dim=0, dtype=result.grad_bias.dtype)
    del logits
    if weight_sum is not None:
        result.grad_weight = weight_sum.total()
    return result


class WeightSum:
    """Gradient of the weight, [v, d]: the sum over chunks of gradient^T hidden, in fp32.

    One chunk needs no sum and is written in the weight's dtype at once.
    """

    def __init__(self, weight: Tensor, num_chunks: int) -> None:
        self.dtype = weight.dtype
        narrow = weight.dtype in (torch.bfloat16, torch.float16)
        self.sum: Tensor | None = None
        if num_chunks > 1:
            self.sum = torch.zeros(
                weight.shape, dtype=torch.float32 if narrow else weight.dtype, device=weight.device
            )
        self.narrow = narrow
        self.only: Tensor | None = None

    def add(self, gradient: Tensor, hidden: Tensor) -> None:
        """Add gradient^T [v, c] times hidden [c, d]."""
        if self.sum is None:
            self.only = torch.mm(gradient.t(), hidden)
        elif not self.narrow:
            self.sum.addmm_(gradient.t(), hidden)
        elif self.sum.is_cuda:
            torch.addmm(self.sum, gradient.t(), hidden, out_dtype=torch.float32, out=self.sum)
        else:
            # no GEMM from 16 bit to fp32 here: block by block, so that no second [v, d] exists
            rows = max(1, _BLOCK_ELEMENTS // hidden.shape[1])
            for start in range(0, self.sum.shape[0], rows):
                block = slice(start, start + rows)
                self.sum[block] += torch.mm(gradient[:, block].t(), hidden)

    def total(self) -> Tensor:
        """[v, d] in the weight's dtype."""
        if self.sum is None:
            assert self.only is not None
            return self.only
        return self.sum.to(self.dtype)
