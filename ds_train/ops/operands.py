"""What the operators of the fused loss share: supervised rows in, gradients of all rows out."""

from __future__ import annotations

import torch
from torch import Tensor

from ds_train.ops.problem import Problem, Result
from ds_train.ops.rows import SupervisedRows


def refuse_second_derivatives() -> None:
    """RuntimeError where a gradient of the gradient is being prepared."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "linear_cross_entropy: its gradient can't be differentiated again; call backward "
            "without create_graph, or use implementation='reference'"
        )


def wide_dtype(hidden: Tensor) -> torch.dtype:
    """Of losses and statistics."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def supervised_problem(
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


def put(rows: SupervisedRows, values: Tensor | None, none: Tensor) -> Tensor:
    """Values of the supervised rows among zeros; empty like `none` where there are none."""
    return none.clone() if values is None else rows.put(values)


def gradients_of(
    rows: SupervisedRows, result: Result, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients that were asked for, of all rows; the others empty."""
    grad_hidden, grad_weight, grad_bias = result.grad_hidden, result.grad_weight, result.grad_bias
    return (
        hidden.new_empty(0) if grad_hidden is None else rows.put(grad_hidden),
        weight.new_empty(0) if grad_weight is None else grad_weight,
        result.logprob.new_empty(0) if grad_bias is None else grad_bias,
    )


def fake_gradients(
    hidden: Tensor, weight: Tensor, grad_hidden: bool, grad_weight: bool, grad_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes and dtypes of `gradients_of`."""
    return (
        hidden.new_empty(hidden.shape if grad_hidden else 0),
        weight.new_empty(weight.shape if grad_weight else 0),
        hidden.new_empty(weight.shape[0] if grad_bias else 0, dtype=wide_dtype(hidden)),
    )
