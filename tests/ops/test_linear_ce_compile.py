"""The operators under torch.compile, and torch's own checks of how they are registered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loss_cases import IGNORE, Inputs, Subject, changed, error, make_inputs
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from ds_train.ops import linear_cross_entropy, linear_logprobs

# traces forward and backward like the default backend, without a compiler behind it
BACKEND = "aot_eager"
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0}


@pytest.fixture
def subject(best_subject: Subject) -> Subject:
    """Tracing takes long, and knows nothing of instruction sets."""
    return best_subject


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def step(subject: Subject, reduction: str, **options: Any) -> Any:
    """A function of hidden, weight and labels, with something to differentiate around the loss."""

    def function(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        loss = linear_cross_entropy(
            hidden.sin(), weight, labels, reduction=reduction,
            implementation=subject.implementation, **options,
        )  # fmt: skip
        return loss.square().sum() * 0.5

    return function


def outcome(function: Any, subject: Subject, inputs: Inputs) -> list[Tensor]:
    there = inputs.to(subject.device)
    hidden, weight = there.hidden.clone().requires_grad_(), there.weight.clone().requires_grad_()
    loss = function(hidden, weight, there.labels)
    return [loss.detach(), *torch.autograd.grad(loss, [hidden, weight])]


def same(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(got, expected, strict=True):
        assert error(one, other.cpu()) <= tolerance


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_compiled_once_for_any_number_of_ignored_rows(
    subject: Subject, reduction: str, dtype: torch.dtype
) -> None:
    counter = CompileCounterWithBackend(BACKEND)
    function = step(subject, reduction, **OPTIONS)
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for masked in (0.0, 0.3, 0.8, 1.0):
        inputs = make_inputs(dtype=dtype, masked=masked)
        got = outcome(compiled, subject, inputs)
        same(got, outcome(function, subject, inputs), 1e-6 if dtype == torch.float32 else 4e-3)
    assert counter.frame_count == 1


def test_compiled_once_more_for_any_number_of_rows(subject: Subject) -> None:
    counter = CompileCounterWithBackend(BACKEND)
    function = step(subject, "mean")
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for n in (37, 38, 39, 64):
        inputs = make_inputs(n)
        same(outcome(compiled, subject, inputs), outcome(function, subject, inputs), 1e-6)
    assert counter.frame_count == 2  # fixed sizes first, then dynamic ones


def test_compiled_logprobs_and_statistics(subject: Subject) -> None:
    def function(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        logprob, entropy = linear_logprobs(
            hidden, weight, labels, return_entropy=True, implementation=subject.implementation
        )
        loss, stats = linear_cross_entropy(
            hidden, weight, labels, return_stats=True, implementation=subject.implementation
        )
        keep = labels != IGNORE
        return (logprob.exp() * keep).sum() + entropy.square().sum() + loss * stats.correct.sum()

    compiled = torch.compile(function, backend=BACKEND, fullgraph=True)
    inputs = make_inputs()
    same(outcome(compiled, subject, inputs), outcome(function, subject, inputs), 1e-6)


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_compiled_with_one_of_them_frozen(subject: Subject, trained: str) -> None:
    inputs = make_inputs()
    function = step(subject, "mean")
    gradients = []
    for one in (torch.compile(function, backend=BACKEND, fullgraph=True), function):
        there = inputs.to(subject.device)
        leaf = there.leaves()[trained].requires_grad_()
        (gradient,) = torch.autograd.grad(one(there.hidden, there.weight, there.labels), leaf)
        gradients.append([gradient])
    same(*gradients, 1e-6)


CHECKS = (
    "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"
)  # fmt: skip


def operands(subject: Subject, dtype: torch.dtype, gradients: bool) -> list[Any]:
    """hidden, weight, labels, bias, class_weight of the operators."""
    inputs = make_inputs(9, 8, 13, dtype, bias=True, class_weight=True, token_weights=True)
    assert inputs.bias is not None
    there = changed(inputs, bias=inputs.bias.float()).to(subject.device)
    leaves = [leaf.requires_grad_(gradients) for leaf in there.leaves().values()]
    return [leaves[0], leaves[1], there.labels, leaves[2], there.class_weight]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("flags", [(True,) * 3, (True, False, False), (False,) * 3])
def test_operators_are_registered_right(
    subject: Subject, dtype: torch.dtype, flags: tuple[bool, ...]
) -> None:
    ops = torch.ops.ds_train
    tensors = operands(subject, dtype, gradients=False)
    for tensor, flag in zip((tensors[0], tensors[1], tensors[3]), flags, strict=True):
        tensor.requires_grad_(flag)
    settings = (5.0, 0.5, None, 1000, subject.implementation)
    tolerances = {"atol": 1e-3, "rtol": 1e-3 if dtype == torch.float32 else 5e-2}
    weights = torch.rand(9).to(subject.device)
    for statistics in (False, True):
        arguments = (*tensors, weights, IGNORE, 0.1, 0.01, *settings, *flags, statistics)
        torch.library.opcheck(
            ops.linear_cross_entropy_sum.default, arguments, test_utils=CHECKS, **tolerances
        )
        arguments = (*tensors, IGNORE, *settings, *flags, *(statistics,) * 3)
        torch.library.opcheck(
            ops.token_statistics.default, arguments, test_utils=CHECKS, **tolerances
        )
    upstream = [torch.randn(9).to(subject.device) for _ in range(4)]
    upstream[1] = None  # type: ignore[call-overload]
    tensors = operands(subject, dtype, gradients=False)
    arguments = (*upstream, *tensors, IGNORE, *settings, *flags)
    torch.library.opcheck(
        ops.token_statistics_backward.default, arguments, test_utils=CHECKS, **tolerances
    )
