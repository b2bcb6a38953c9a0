"""The fused loss as a loop over row chunks: GEMM, row kernel in place, GEMMs of the gradients.

Only one chunk of logits exists at a time. With a frozen head that is two GEMMs and nothing of the
weight's size; the weight's gradient is summed over the chunks in fp32. `chunked` and `cuda` are
this loop around two row kernels. `cpu` is too where neither its own GEMMs nor `slab_loop.py` nor
`one_pass.py` apply: in fp16, and in fp32 with more tokens than fit, or label smoothing, say.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ds_train.ops.problem import Problem, Result, RowKernel, Upstream, Wanted, empty_result
from ds_train.plan.loss_chunks import chunk_rows

_BLOCK_ELEMENTS = 2**24
_CACHE_BYTES = 1024  # rows at a multiple of this share few lines of a processor's cache
_LINE_BYTES = 64


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
    logits = hidden.new_empty(rows, row_stride(v, hidden))
    logits[:, v:] = 0  # bf16 GEMMs on a CPU multiply what stands there by 0: NaN must not
    logits = logits[:, :v]
    if wanted.hidden:
        result.grad_hidden = torch.empty(n, d, dtype=hidden.dtype, device=hidden.device)
    weight_sum = WeightSum(weight) if wanted.weight else None
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
            weight_sum.add(z, hidden[chunk], is_last=chunk.stop == n)
        if result.grad_bias is not None:
            result.grad_bias += z.sum(dim=0, dtype=result.grad_bias.dtype)
    del logits
    if weight_sum is not None:
        result.grad_weight = weight_sum.total()
    return result


def row_stride(vocab: int, like: Tensor) -> int:
    """Elements from a row of logits to the next, in the dtype and on the device of `like`.

    Whole 16-byte words, which kernels load and store aligned. On a CPU the rows are spread over the
    cache: the product for the weight's gradient reads a column of them at a time, and took 1.4
    times as long where 512 rows of 192 KiB lay in huge pages.
    """
    stride = -(-vocab // 8) * 8
    size = like.element_size()
    if like.device.type == "cpu" and stride * size % _CACHE_BYTES == 0:
        stride += _LINE_BYTES // size
    return stride


class WeightSum:
    """Gradient of the weight, [v, d]: the sum over chunks of gradient^T hidden, in fp32.

    The first chunk is written, not added to zeros. One chunk needs no sum at all and is written in
    the weight's dtype at once.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.narrow = weight.dtype in (torch.bfloat16, torch.float16)
        self.sum: Tensor | None = None

    def add(self, gradient: Tensor, hidden: Tensor, *, is_last: bool) -> None:
        """Add gradient^T [v, c] times hidden [c, d]."""
        if self.sum is not None:
            self._add_to(self.sum, gradient, hidden)
        elif is_last or not self.narrow:
            self.sum = torch.mm(gradient.t(), hidden)
        else:
            self.sum = torch.zeros_like(self.weight, dtype=torch.float32)
            self._add_to(self.sum, gradient, hidden)

    def _add_to(self, total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
        if not self.narrow:
            total.addmm_(gradient.t(), hidden)
        elif total.is_cuda:
            torch.addmm(total, gradient.t(), hidden, out_dtype=torch.float32, out=total)
        else:
            # no GEMM from 16 bit to fp32 here: block by block, so that no second [v, d] exists
            rows = max(1, _BLOCK_ELEMENTS // hidden.shape[1])
            for start in range(0, total.shape[0], rows):
                block = slice(start, start + rows)
                total[block] += torch.mm(gradient[:, block].t(), hidden)

    def total(self) -> Tensor:
        """[v, d] in the weight's dtype."""
        assert self.sum is not None
        return self.sum.to(self.weight.dtype)
