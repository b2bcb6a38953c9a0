"""The row kernel in plain torch: for any device, and for machines without a compiler."""

from __future__ import annotations

import torch
from torch import Tensor

from ds_train.ops.problem import Problem, Result, Upstream, Wanted


def torch_rows(
    logits: Tensor,
    rows: slice,
    problem: Problem,
    upstream: Upstream | None,
    wanted: Wanted,
    result: Result,
) -> None:
    """A `RowKernel` (see `problem.py`); arithmetic in fp32, or in fp64 for fp64 logits."""
    z, slope = transformed(logits, problem)
    v = z.shape[1]
    labels = problem.labels[rows]
    valid = (labels >= 0) & (labels < v)
    target = labels.clamp(0, v - 1)[:, None]

    largest, argmax = z.max(dim=1, keepdim=True)
    z_target = torch.where(valid[:, None], z.gather(1, target), torch.nan)
    if wanted.correct:
        assert result.correct is not None
        torch.eq(argmax, labels[:, None], out=result.correct[rows].unsqueeze(1))
    exp = torch.exp(z - largest)
    total = exp.sum(dim=1, keepdim=True)
    log_total = total.log()
    logsumexp = torch.where(valid[:, None], largest + log_total, torch.nan)
    logprob = (z_target - largest) - log_total
    result.logprob[rows] = logprob[:, 0]
    result.logsumexp[rows] = logsumexp[:, 0]
    if result.logit_sum is not None:
        result.logit_sum[rows] = _logit_sum(z, problem)
    p = exp.div_(total)
    needs_entropy = upstream is not None and upstream.entropy is not None
    entropy = None
    if result.entropy is not None or needs_entropy:
        # a class with p = 0 adds nothing, also where its logit is -inf
        entropy = logsumexp - torch.where(p > 0, p * z, 0.0).sum(dim=1, keepdim=True)
        if result.entropy is not None:
            result.entropy[rows] = entropy[:, 0]
    if upstream is not None:
        gradient = _gradient(
            z, p, target, valid[:, None], logprob, logsumexp, entropy, rows, problem, upstream
        )
        if slope is not None:
            gradient *= slope
        logits.copy_(gradient.mul_(problem.logit_scale))


def transformed(logits: Tensor, problem: Problem) -> tuple[Tensor, Tensor | None]:
    """z [c, v] in fp32 (fp64), and the derivative of the soft cap, if there is one."""
    z = logits if logits.dtype == torch.float64 else logits.float()
    if problem.bias is not None:
        z = z + problem.bias
    if problem.logit_scale != 1.0:
        z = z * problem.logit_scale
    if problem.softcap is None:
        return z, None
    tanh = torch.tanh(z / problem.softcap)
    return tanh * problem.softcap, 1 - tanh * tanh


def _logit_sum(z: Tensor, problem: Problem) -> Tensor:
    """Sum over the classes of class weight times z: [c]; a class at -inf adds nothing."""
    z = z.masked_fill(z == -torch.inf, 0.0)
    return z.sum(dim=1) if problem.class_weight is None else z @ problem.class_weight.to(z.dtype)


def _gradient(
    z: Tensor,
    p: Tensor,
    target: Tensor,
    valid: Tensor,
    logprob: Tensor,
    logsumexp: Tensor,
    entropy: Tensor | None,
    rows: slice,
    problem: Problem,
    upstream: Upstream,
) -> Tensor:
    """d loss / d z [c, v]; the formula stands in `problem.py`. Overwrites p."""

    def of(gradient: Tensor | None) -> Tensor | None:
        return None if gradient is None else gradient[rows][:, None].to(z.dtype)

    at_logprob = of(upstream.logprob)
    factor = torch.zeros_like(logsumexp)
    if at_logprob is not None:
        factor = factor - at_logprob
    if (at_logsumexp := of(upstream.logsumexp)) is not None:
        factor = factor + at_logsumexp
    if (slope := of(upstream.logsumexp_slope)) is not None:
        factor = factor + slope * logsumexp
    # 1 - p of the label, which p itself is too coarse for as it nears 1; a row with a label
    # that does not exist is NaN as a whole
    at_target = torch.exp(logprob) * factor
    if at_logprob is not None:
        at_target = at_logprob * -torch.expm1(logprob) + torch.exp(logprob) * (factor + at_logprob)
    at_target = torch.where(valid, at_target, torch.nan)
    factor = torch.where(valid, factor, torch.nan)
    if (at_entropy := of(upstream.entropy)) is not None:
        assert entropy is not None
        centred = torch.where(p > 0, z - logsumexp + entropy, 0.0)
        gradient = p * (factor - at_entropy * centred)
        at_target = at_target - torch.exp(logprob) * at_entropy * centred.gather(1, target)
    else:
        gradient = p.mul_(factor)
    gradient.scatter_(1, target, at_target)
    if (at_sum := of(upstream.logit_sum)) is not None:
        at_sum = at_sum if problem.class_weight is None else at_sum * problem.class_weight
        gradient += at_sum.masked_fill(z == -torch.inf, 0.0)
    return gradient
