"""The fused loss in fp32 on a CPU where the output layer does not train: one slab of columns of
the vocabulary after the other, and only one slab of logits at a time.

Sums over the columns are kept relative to the largest logit so far, that of the hidden states'
gradient too: sum_j exp(z_j - max) w_j, which shrinks where a slab has a larger one (Dao et al.,
FlashAttention, 2022, algorithm 1, with weights in the place of values). So each weight is read
once and used for both products while it is in the caches. A chunk of rows with whole logits, as in
`row_loop.py`, would have to be narrow to be small, and the weight be packed anew for each.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ds_train.ops import native
from ds_train.ops.problem import Problem, Result, Upstream, Wanted, empty_result
from ds_train.plan.loss_chunks import SLAB_PADDING, pass_columns, pass_rows


def columns_of(
    problem: Problem, upstream: Upstream | None, wanted: Wanted, chunk_bytes: int | None
) -> int | None:
    """Columns of a slab; None where `row_loop.py` has to do it.

    In 16 bits the gradient would be rounded after every slab. What label smoothing, an entropy or
    a bias adds to the gradient is not proportional to exp(z_j - max).
    """
    if problem.hidden.dtype != torch.float32:
        return None
    if upstream is not None:
        more = upstream.logit_sum is not None or upstream.entropy is not None
        if wanted.weight or wanted.bias or more:
            return None
    vocab = problem.weight.shape[0]
    return pass_columns(len(problem.labels), vocab, problem.hidden.element_size(), chunk_bytes)


def compute_in_one_pass(
    problem: Problem, upstream: Upstream | None, wanted: Wanted, columns: int
) -> Result:
    """Statistics of all rows, and the gradient of the hidden states where it is wanted."""
    hidden = problem.hidden
    result = empty_result(problem, wanted)
    if upstream is not None and wanted.hidden:
        result.grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    else:
        upstream = None
    n = hidden.shape[0]
    at_once = pass_rows(n)
    slab = hidden.new_empty(at_once, columns + SLAB_PADDING)
    for start in range(0, n, at_once):
        _pass(problem, upstream, result, slice(start, min(start + at_once, n)), columns, slab)
    return result


def _pass(
    problem: Problem,
    upstream: Upstream | None,
    result: Result,
    rows: slice,
    columns: int,
    memory: Tensor,
) -> None:
    hidden, weight = problem.hidden[rows], problem.weight
    total = None if result.grad_hidden is None else result.grad_hidden[rows]
    slabs = native.CpuSlabs(rows, problem, upstream, result)
    for first in range(0, weight.shape[0], columns):
        part = slice(first, first + columns)
        slab = memory[: len(hidden), : weight[part].shape[0]]
        torch.mm(hidden, weight[part].t(), out=slab)
        slabs.add(slab, _columns(problem, part), first)
        if total is None:
            continue
        if first == 0:
            torch.mm(slab, weight[part], out=total)
        else:
            total.mul_(slabs.factor[:, None]).addmm_(slab, weight[part])
    slabs.end()
    if total is not None:
        labels = problem.labels[rows].clamp(0, weight.shape[0] - 1)  # of another, the row is NaN
        total.mul_(slabs.factor[:, None])
        total.addcmul_(slabs.target[:, None], weight.index_select(0, labels))


def _columns(problem: Problem, part: slice) -> Problem:
    """The problem with these columns of the vocabulary."""
    bias, class_weight = (
        None if one is None else one[part] for one in (problem.bias, problem.class_weight)
    )
    return replace(problem, weight=problem.weight[part], bias=bias, class_weight=class_weight)
