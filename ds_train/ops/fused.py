"""The fused loss as torch operators: autograd, fake kernels, ignored rows left out.

`linear_cross_entropy_sum` makes the gradients in its forward pass, since the gradient of a sum is
known but for one factor: logits exist once. `token_statistics` returns what per-token losses are
made of; their gradients are known in the backward pass only, which computes the logits again.

Both are opaque to `torch.compile`: how many rows are supervised, and so the shapes inside, are
nobody's business outside. Gradients go through autograd and never into `.grad`, so gradient
accumulation, loss scaling, hooks and tied weights see what they expect.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ds_train.ops.implementations import choose, compute_with
from ds_train.ops.problem import Problem, Result, Upstream, Wanted
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
    problem = _problem(rows, hidden, weight, labels, bias, class_weight, softcap, logit_scale)
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
    like = hidden.new_empty(len(problem.labels), dtype=_wide(hidden))
    upstream = terms.upstream(like) if wanted.gradient else None
    result = compute_with(name)(problem, upstream, wanted, chunk_bytes)
    loss = terms.losses(result.logprob, result.logsumexp, result.logit_sum).sum()
    none = like.new_empty(0)
    return (
        rows.checked(loss),
        _put(rows, result.logprob if statistics else None, none),
        _put(rows, result.logsumexp if statistics else None, none),
        _put(rows, result.entropy, none),
        _put(rows, result.correct, none.bool()),
        *_gradients(rows, result, hidden, weight),
    )


@linear_cross_entropy_sum.register_fake
def _(  # type: ignore[no-untyped-def]
    hidden, weight, labels, *settings
) -> tuple[Tensor, ...]:
    grad_hidden, grad_weight, grad_bias, statistics = settings[-4:]
    wide = hidden.new_empty((), dtype=_wide(hidden))
    n = labels.shape[0] if statistics else 0
    return (
        wide,
        *(wide.new_empty(n) for _ in range(3)),
        wide.new_empty(n, dtype=torch.bool),
        *_fake_gradients(hidden, weight, grad_hidden, grad_weight, grad_bias),
    )


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[-3:])
    ctx.wanted = inputs[-4:-1]
    # the gradients are outputs too: zeros for "their" gradients would be as large as the weight
    ctx.set_materialize_grads(False)


def _sum_backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    _refuse_second_derivatives()
    if grad_loss is None:
        return (None,) * 18
    in_place = not graph_is_kept()
    hidden, weight, bias = (
        scaled(saved, grad_loss, in_place=in_place) if wanted else None
        for saved, wanted in zip(ctx.saved_tensors, ctx.wanted, strict=True)
    )
    return hidden, weight, None, bias, *(None,) * 14


linear_cross_entropy_sum.register_autograd(_sum_backward, setup_context=_save_sum)


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

    Arguments as in `linear_cross_entropy_sum`; the last three say what is wanted, and what isn't
    is empty. All but `correct` are differentiable.
    """
    check_values(hidden, weight, labels, ignore_index, class_weight, None)
    rows = SupervisedRows(labels, ignore_index, num_supervised)
    problem = _problem(rows, hidden, weight, labels, bias, class_weight, softcap, logit_scale)
    name, _ = choose(implementation, hidden.device, hidden.dtype)
    wanted = Wanted(logit_sum=logit_sum, entropy=entropy, correct=correct)
    result = compute_with(name)(problem, None, wanted, chunk_bytes)
    none = result.logprob.new_empty(0)
    return (
        rows.checked(rows.put(result.logprob)),
        rows.put(result.logsumexp),
        _put(rows, result.logit_sum, none),
        _put(rows, result.entropy, none),
        _put(rows, result.correct, none.bool()),
    )


@token_statistics.register_fake
def _(hidden, weight, labels, *settings) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
    logit_sum, entropy, correct = settings[-3:]
    n, wide = labels.shape[0], hidden.new_empty(0, dtype=_wide(hidden))
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
    problem = _problem(rows, hidden, weight, labels, bias, class_weight, softcap, logit_scale)
    upstream = Upstream(
        logprob=rows.take_optional(grad_logprob),
        logsumexp=rows.take_optional(grad_logsumexp),
        logit_sum=rows.take_optional(grad_logit_sum),
        entropy=rows.take_optional(grad_entropy),
    )
    name, _ = choose(implementation, hidden.device, hidden.dtype)
    wanted = Wanted(hidden=grad_hidden, weight=grad_weight, bias=grad_bias)
    result = compute_with(name)(problem, upstream, wanted, chunk_bytes)
    return _gradients(rows, result, hidden, weight)


@token_statistics_backward.register_fake
def _(*inputs) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
    return _fake_gradients(inputs[4], inputs[5], *inputs[-3:])


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:14]
    ctx.set_materialize_grads(False)


def _statistics_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    _refuse_second_derivatives()
    used = [grad if grad is not None and grad.numel() else None for grad in grads[:4]]
    wanted = ctx.settings[-3:]
    made = token_statistics_backward(*used, *ctx.saved_tensors, *ctx.settings)
    hidden, weight, bias = (
        grad if asked else None for grad, asked in zip(made, wanted, strict=True)
    )
    return hidden, weight, None, bias, *(None,) * 13


token_statistics.register_autograd(_statistics_backward, setup_context=_save_statistics)


def _refuse_second_derivatives() -> None:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "linear_cross_entropy: its gradient can't be differentiated again; call backward "
            "without create_graph, or use implementation='reference'"
        )


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _problem(
    rows: SupervisedRows,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    softcap: float | None,
    logit_scale: float,
) -> Problem:
    """What an implementation is given: the supervised rows."""
    return Problem(
        hidden=rows.take(hidden),
        weight=weight,
        labels=rows.take(labels),
        bias=bias,
        class_weight=class_weight,
        logit_scale=logit_scale,
        softcap=softcap,
    )


def _put(rows: SupervisedRows, values: Tensor | None, none: Tensor) -> Tensor:
    return none.clone() if values is None else rows.put(values)


def _gradients(
    rows: SupervisedRows, result: Result, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that were asked for, of all rows; the others empty."""
    grad_hidden, grad_weight, grad_bias = result.grad_hidden, result.grad_weight, result.grad_bias
    return (
        hidden.new_empty(0) if grad_hidden is None else rows.put(grad_hidden),
        weight.new_empty(0) if grad_weight is None else grad_weight,
        result.logprob.new_empty(0) if grad_bias is None else grad_bias,
    )


def _fake_gradients(
    hidden: Tensor, weight: Tensor, grad_hidden: bool, grad_weight: bool, grad_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if grad_hidden else 0),
        weight.new_empty(weight.shape if grad_weight else 0),
        hidden.new_empty(weight.shape[0] if grad_bias else 0, dtype=_wide(hidden)),
    )
