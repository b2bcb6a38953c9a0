"""What every implementation of the fused loss computes, and what it gives back.

An implementation is one function `compute(problem, upstream, wanted, chunk_bytes) -> Result`. It
knows nothing of reductions, label smoothing, z-loss or token weights: these are functions of four
numbers per token (see `Result`), and enter as the gradient with respect to them (`Upstream`).
With z = softcap(logit_scale * (hidden weight^T + bias)), p = softmax(z), y the label and c the
class weights,

    d loss / d z_j = g_logprob (1[j = y] - p_j) + (g_logsumexp + g_slope logsumexp) p_j
                     + g_logit_sum c_j - g_entropy p_j (z_j - logsumexp + entropy)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Rows of hidden states with a label each, and the output layer."""

    hidden: Tensor
    """[n, d]"""
    weight: Tensor
    """[v, d], dtype and device of `hidden`"""
    labels: Tensor
    """[n] int64; one outside [0, v) makes a row of NaN"""
    bias: Tensor | None = None
    """[v] fp32"""
    class_weight: Tensor | None = None
    """[v] fp32, the weights in `Result.logit_sum`; 1 when left out"""
    logit_scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """Gradient of the loss with respect to each row's statistics: fp32 [n], or None for zeros."""

    logprob: Tensor | None = None
    logsumexp: Tensor | None = None
    logsumexp_slope: Tensor | None = None
    """Times logsumexp, added to `logsumexp`: what a term logsumexp^2 needs, before it is known."""
    logit_sum: Tensor | None = None
    entropy: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which gradients and which statistics beside logprob and logsumexp."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False
    entropy: bool = False
    logit_sum: bool = False
    correct: bool = False

    @property
    def gradient(self) -> bool:
        """Whether the gradient of the logits is needed at all."""
        return self.hidden or self.weight or self.bias


@dataclass(kw_only=True)
class Result:
    """Statistics of each row, fp32 [n], and the gradients that were asked for."""

    logprob: Tensor
    """log p_y = (z_y - max) - log sum_j exp(z_j - max)"""
    logsumexp: Tensor
    logit_sum: Tensor | None = None
    """sum_j c_j z_j, for label smoothing"""
    entropy: Tensor | None = None
    """-sum_j p_j log p_j, in nats"""
    correct: Tensor | None = None
    """bool: the first largest logit is the label's"""
    grad_hidden: Tensor | None = None
    """[n, d], dtype of hidden"""
    grad_weight: Tensor | None = None
    """[v, d], fp32 or dtype of weight"""
    grad_bias: Tensor | None = None
    """[v] fp32"""


Compute: TypeAlias = Callable[[Problem, Upstream | None, Wanted, int | None], Result]

RowKernel: TypeAlias = Callable[[Tensor, slice, Problem, Upstream | None, Wanted, Result], None]
"""Turns products [c, v] of the rows `slice` (no bias, scale or cap yet) into the rows' statistics,
written to `Result`, and, if there is an upstream gradient, into their own gradient, in place."""


def empty_result(problem: Problem, wanted: Wanted) -> Result:
    """Room for the statistics; the gradients are for the implementation to add."""
    n, device = problem.hidden.shape[0], problem.hidden.device
    dtype = torch.float64 if problem.hidden.dtype == torch.float64 else torch.float32

    def rows(asked: bool = True) -> Tensor | None:
        return torch.empty(n, dtype=dtype, device=device) if asked else None

    logprob, logsumexp = rows(), rows()
    assert logprob is not None and logsumexp is not None
    return Result(
        logprob=logprob,
        logsumexp=logsumexp,
        logit_sum=rows(wanted.logit_sum),
        entropy=rows(wanted.entropy),
        correct=torch.empty(n, dtype=torch.bool, device=device) if wanted.correct else None,
    )
