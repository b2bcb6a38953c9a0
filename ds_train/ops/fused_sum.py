"""The sum of the token losses as a torch operator: its gradients are made in the forward pass.

The gradient of a sum is known but for one factor, so logits exist once. Opaque to `torch.compile`:
how many rows are supervised, and so the shapes inside, are nobody's business outside. Gradients go
through autograd and never into `.grad`, so gradient accumulation, loss scaling, hooks and tied
weights see what they expect.
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
from ds_train.ops.problem import Wanted
from ds_train.ops.rows import SupervisedRows, check_values
from ds_train.ops.scaling import graph_is_kept, scaled
from ds_train.ops.terms import Terms


@torch.library.custom_op("ds_train::linear_cross_entropy_sum", mutates_args=())
def linear_cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    token_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    logit_scale: float,
    num_supervised: int | None,
    chunk_bytes: int | None,
    implementation: str,
    grad_hidden: bool,
    grad_weight: bool,
    grad_bias: bool,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum of the token losses, their statistics, and the gradients of the sum.

    Args:
        hidden: [n, d]; weight: [v, d]; labels: [n] int64; bias, class_weight: [v] fp32;
            token_weights: [n] fp32.
        grad_hidden, grad_weight, grad_bias: which gradients a backward pass will ask for.
        statistics: whether logsumexp, entropy and correct are wanted.

    Returns:
        loss_sum []; logprob, logsumexp, entropy [n] fp32 and correct [n] bool, zero where ignored;
        gradients of hidden [n, d], weight [v, d] and bias [v]. What isn't wanted is empty.
    """
    name, _ = choose(implementation, hidden.device, hidden.dtype)
    check_values(hidden, weight, labels, ignore_index, class_weight, token_weights)
    rows = SupervisedRows(labels, ignore_index, num_supervised)
    problem = supervised_problem(
        rows, hidden, weight, labels, bias, class_weight, softcap, logit_scale
    )
    terms = Terms(
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        num_classes=weight.shape[0],
        labels=problem.labels,
        class_weight=class_weight,
        token_weight=None if token_weights is None else rows.take(token_weights),
    )
    wanted = Wanted(
        hidden=grad_hidden,
        weight=grad_weight,
        bias=grad_bias,
        entropy=statistics,
        logit_sum=terms.needs_logit_sum,
        correct=statistics,
    )
    like = hidden.new_empty(len(problem.labels), dtype=wide_dtype(hidden))
    upstream = terms.upstream(like) if wanted.gradient else None
    result = compute_with(name)(problem, upstream, wanted, chunk_bytes)
    loss = terms.losses(result.logprob, result.logsumexp, result.logit_sum).sum()
    none = like.new_empty(0)
    return (
        rows.checked(loss),
        put(rows, result.logprob if statistics else None, none),
        put(rows, result.logsumexp if statistics else None, none),
        put(rows, result.entropy, none),
        put(rows, result.correct, none.bool()),
        *gradients_of(rows, result, hidden, weight),
    )


@linear_cross_entropy_sum.register_fake
def _(  # type: ignore[no-untyped-def]
    hidden, weight, labels, *settings
) -> tuple[Tensor, ...]:
    grad_hidden, grad_weight, grad_bias, statistics = settings[-4:]
    wide = hidden.new_empty((), dtype=wide_dtype(hidden))
    n = labels.shape[0] if statistics else 0
    return (
        wide,
        *(wide.new_empty(n) for _ in range(3)),
        wide.new_empty(n, dtype=torch.bool),
        *fake_gradients(hidden, weight, grad_hidden, grad_weight, grad_bias),
    )


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[-3:])
    ctx.wanted = inputs[-4:-1]
    # the gradients are outputs too: zeros for "their" gradients would be as large as the weight
    ctx.set_materialize_grads(False)


def _sum_backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    refuse_second_derivatives()
    if grad_loss is None:
        return (None,) * 18
    in_place = not graph_is_kept()
    hidden, weight, bias = (
        scaled(saved, grad_loss, in_place=in_place) if wanted else None
        for saved, wanted in zip(ctx.saved_tensors, ctx.wanted, strict=True)
    )
    return hidden, weight, None, bias, *(None,) * 14


linear_cross_entropy_sum.register_autograd(_sum_backward, setup_context=_save_sum)
