"""What per-token losses are made of, as torch operators: the statistics, and their gradients.

Those are known in the backward pass only, which computes the logits again. Opaque to
`torch.compile`, for the reasons that `fused_sum.py` names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ds_train.ops.implementations import choose, compute_with
from ds_train.ops.operands import (
    fake_gradients,
    gradients_of,
    put,
    refuse_second_derivatives,
    supervised_problem,
    wide_dtype,
)
from ds_train.ops.problem import Upstream, Wanted
from ds_train.ops.rows import SupervisedRows, check_values


@torch.library.custom_op("ds_train::token_statistics", mutates_args=())
def token_statistics(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    num_supervised: int | None,
    chunk_bytes: int | None,
    implementation: str,
    grad_hidden: bool,
    grad_weight: bool,
    grad_bias: bool,
    logit_sum: bool,
    entropy: bool,
    correct: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logprob, logsumexp, logit_sum, entropy [n] fp32 and correct [n] bool; zero where ignored.

    Arguments as in `linear_cross_entropy_sum` (fused_sum.py); the last three say what is wanted,
    and what isn't is empty. All but `correct` are differentiable.
    """
    check_values(hidden, weight, labels, ignore_index, class_weight, None)
    rows = SupervisedRows(labels, ignore_index, num_supervised)
    problem = supervised_problem(
        rows, hidden, weight, labels, bias, class_weight, softcap, logit_scale
    )
    name, _ = choose(implementation, hidden.device, hidden.dtype)
    wanted = Wanted(logit_sum=logit_sum, entropy=entropy, correct=correct)
    result = compute_with(name)(problem, None, wanted, chunk_bytes)
    none = result.logprob.new_empty(0)
    return (
        rows.checked(rows.put(result.logprob)),
        rows.put(result.logsumexp),
        put(rows, result.logit_sum, none),
        put(rows, result.entropy, none),
        put(rows, result.correct, none.bool()),
    )


@token_statistics.register_fake
def _(hidden, weight, labels, *settings) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
    logit_sum, entropy, correct = settings[-3:]
    n, wide = labels.shape[0], hidden.new_empty(0, dtype=wide_dtype(hidden))
    return (
        wide.new_empty(n),
        wide.new_empty(n),
        wide.new_empty(n if logit_sum else 0),
        wide.new_empty(n if entropy else 0),
        wide.new_empty(n if correct else 0, dtype=torch.bool),
    )


@torch.library.custom_op("ds_train::token_statistics_backward", mutates_args=())
def token_statistics_backward(
    grad_logprob: Tensor | None,
    grad_logsumexp: Tensor | None,
    grad_logit_sum: Tensor | None,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    num_supervised: int | None,
    chunk_bytes: int | None,
    implementation: str,
    grad_hidden: bool,
    grad_weight: bool,
    grad_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden [n, d], weight [v, d] and bias [v] from those of the statistics [n]."""
    rows = SupervisedRows(labels, ignore_index, num_supervised)
    problem = supervised_problem(
        rows, hidden, weight, labels, bias, class_weight, softcap, logit_scale
    )
    upstream = Upstream(
        logprob=rows.take_optional(grad_logprob),
        logsumexp=rows.take_optional(grad_logsumexp),
        logit_sum=rows.take_optional(grad_logit_sum),
        entropy=rows.take_optional(grad_entropy),
    )
    name, _ = choose(implementation, hidden.device, hidden.dtype)
    wanted = Wanted(hidden=grad_hidden, weight=grad_weight, bias=grad_bias)
    result = compute_with(name)(problem, upstream, wanted, chunk_bytes)
    return gradients_of(rows, result, hidden, weight)


@token_statistics_backward.register_fake
def _(*inputs) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
    return fake_gradients(inputs[4], inputs[5], *inputs[-3:])


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:14]
    ctx.set_materialize_grads(False)


def _statistics_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    refuse_second_derivatives()
    used = [grad if grad is not None and grad.numel() else None for grad in grads[:4]]
    wanted = ctx.settings[-3:]
    made = token_statistics_backward(*used, *ctx.saved_tensors, *ctx.settings)
    hidden, weight, bias = (
        grad if asked else None for grad, asked in zip(made, wanted, strict=True)
    )
    return hidden, weight, None, bias, *(None,) * 13


token_statistics.register_autograd(_statistics_backward, setup_context=_save_statistics)
