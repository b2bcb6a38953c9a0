"""What autograd may ask of the loss: parts of it, twice, inside a checkpoint, not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_cases import (
    DTYPE_NAMES,
    DTYPES,
    IGNORE,
    Inputs,
    Subject,
    changed,
    error,
    fused,
    make_inputs,
    plain_losses,
    upstream_of,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ds_train.ops import linear_cross_entropy

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NAMES)
either = pytest.mark.parametrize("reduction", ["sum", "none"])
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def leaves_of(subject: Subject, inputs: Inputs) -> Inputs:
    """A copy on the subject's device that asks for every gradient."""
    there = inputs.to(subject.device)
    return changed(there, **{k: t.clone().requires_grad_() for k, t in there.leaves().items()})


def loss_of(subject: Subject, inputs: Inputs, reduction: str = "sum", **options: Any) -> Tensor:
    result = linear_cross_entropy(
        inputs.hidden, inputs.weight, inputs.labels, **inputs.arguments(), reduction=reduction,
        implementation=subject.implementation, **options,
    )  # fmt: skip
    assert isinstance(result, Tensor)
    return result


@all_dtypes
@either
def test_backward_twice(subject: Subject, reduction: str, dtype: torch.dtype) -> None:
    inputs = leaves_of(subject, make_inputs(dtype=dtype, bias=True))
    loss = loss_of(subject, inputs, reduction).sum() * 3
    leaves = list(inputs.leaves().values())
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    for one, other in zip(first, second, strict=True):
        assert one.any() and torch.equal(one, other)


@all_dtypes
def test_factors_of_backward_passes_over_one_graph(subject: Subject, dtype: torch.dtype) -> None:
    """None meets a gradient that the one before has scaled; the last may scale it in its place."""
    inputs = leaves_of(subject, make_inputs(dtype=dtype, bias=True))
    leaves = list(inputs.leaves().values())
    loss = loss_of(subject, inputs)
    pairs = []
    for factor, keep in ((1.0, True), (3.0, True), (0.3, True), (0.7, False)):
        upstream = torch.full_like(loss, factor)
        found = torch.autograd.grad(loss, leaves, upstream, retain_graph=keep)
        alone = torch.autograd.grad(loss_of(subject, inputs), leaves, upstream, retain_graph=True)
        pairs += zip(found, alone, strict=True)
    # only now: what one pass has given must not change in the next
    for one, other in pairs:
        assert torch.equal(one, other)


@either
def test_a_second_derivative_is_refused(subject: Subject, reduction: str) -> None:
    inputs = leaves_of(subject, make_inputs())
    loss = loss_of(subject, inputs, reduction).sum()
    with pytest.raises(RuntimeError) as caught:
        torch.autograd.grad(loss, inputs.hidden, create_graph=True)
    assert str(caught.value) == (
        "linear_cross_entropy: its gradient can't be differentiated again; call backward without "
        "create_graph, or use implementation='reference'"
    )


def test_the_reference_has_second_derivatives() -> None:
    inputs = leaves_of(Subject("reference"), make_inputs(4, 3, 5).to(torch.float64))

    def function(hidden: Tensor) -> Tensor:
        return loss_of(Subject("reference"), changed(inputs, hidden=hidden))

    assert torch.autograd.gradgradcheck(function, inputs.hidden)


@all_dtypes
@either
@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("bias",), ("hidden", "bias")])
def test_only_some_gradients(
    subject: Subject, reduction: str, trained: tuple[str, ...], dtype: torch.dtype
) -> None:
    inputs = make_inputs(dtype=dtype, bias=True)
    whole = fused(subject, inputs, reduction)
    there = inputs.to(subject.device)
    for name in trained:
        there.leaves()[name].requires_grad_()
    loss = loss_of(subject, there, reduction)
    upstream = torch.full_like(loss, 0.7)
    if reduction == "none":
        upstream = upstream_of(loss.numel()).to(loss)
    loss.backward(upstream)
    for name, leaf in there.leaves().items():
        if name not in trained:
            assert leaf.grad is None, name
            continue
        assert leaf.grad is not None and leaf.grad.dtype == dtype
        assert error(leaf.grad, whole.gradients[name]) < TOLERANCE[dtype], name


@either
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(any_subject: Subject, reduction: str, mode: Any) -> None:
    inputs = leaves_of(any_subject, make_inputs(bias=True))
    expected = loss_of(any_subject, inputs, reduction)
    assert expected.requires_grad
    with mode():
        got = loss_of(any_subject, inputs, reduction)
    assert not got.requires_grad
    assert error(got, expected.detach()) < 1e-6


@all_dtypes
@either
def test_weight_that_is_the_embedding_too(
    any_subject: Subject, reduction: str, dtype: torch.dtype
) -> None:
    """Both uses of a tied weight add up."""
    inputs = make_inputs(dtype=dtype, masked=0.3)
    ids = torch.randint(0, 53, (37,), generator=torch.Generator().manual_seed(9))

    def gradient(weight: Tensor, loss: Any) -> Tensor:
        weight = weight.detach().requires_grad_()
        hidden = F.embedding(ids.to(weight.device), weight).tanh()
        loss(changed(there if weight.dtype == dtype else exact, hidden=hidden, weight=weight))
        assert weight.grad is not None
        return weight.grad

    there, exact = inputs.to(any_subject.device), inputs.to(torch.float64)
    got = gradient(there.weight, lambda i: loss_of(any_subject, i, reduction).sum().backward())
    eager = gradient(there.weight, lambda i: plain_losses(i).sum().backward())
    wanted = gradient(exact.weight, lambda i: plain_losses(i).sum().backward())
    floor = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    assert error(got, wanted) <= max(1.5 * error(eager, wanted), floor)


@either
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(any_subject: Subject, reduction: str, reentrant: bool) -> None:
    inputs = make_inputs(bias=True)

    def run(outer: Any) -> list[Tensor]:
        fresh = leaves_of(any_subject, inputs)

        def function(hidden: Tensor, weight: Tensor) -> Tensor:
            changed_inputs = changed(fresh, hidden=hidden.sin(), weight=weight)
            return loss_of(any_subject, changed_inputs, reduction)

        (outer(function, fresh.hidden, fresh.weight).sum() * 2).backward()
        gradients = [leaf.grad for leaf in fresh.leaves().values()]
        assert all(g is not None for g in gradients)
        return gradients  # type: ignore[return-value]

    direct = run(lambda function, *args: function(*args))
    saved = run(lambda function, *args: checkpoint(function, *args, use_reentrant=reentrant))
    for one, other in zip(direct, saved, strict=True):
        assert torch.equal(one, other)


@all_dtypes
def test_square_of_each_loss(any_subject: Subject, dtype: torch.dtype) -> None:
    """Then the upstream gradient of a row is its own loss."""
    inputs = make_inputs(dtype=dtype)

    def gradients(leaves: Inputs, losses: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(losses.square().sum(), [leaves.hidden, leaves.weight]))

    fresh = leaves_of(any_subject, inputs)
    ours = gradients(fresh, loss_of(any_subject, fresh, "none"))
    fresh = leaves_of(any_subject, inputs)
    eager = gradients(fresh, plain_losses(fresh))
    exact_inputs = leaves_of(Subject("reference"), inputs.to(torch.float64))
    exact = gradients(exact_inputs, plain_losses(exact_inputs))
    floor = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    for one, other, wanted in zip(ours, eager, exact, strict=True):
        assert error(one, wanted) <= max(1.5 * error(other, wanted), floor)


@either
def test_loss_and_statistics_of_one_call(subject: Subject, reduction: str) -> None:
    """Asking for statistics does not change the loss, and they agree with it."""
    inputs = make_inputs()
    without = fused(subject, inputs, reduction)
    fresh = leaves_of(subject, inputs)
    loss, stats = linear_cross_entropy(
        fresh.hidden, fresh.weight, fresh.labels, reduction=reduction, return_stats=True,
        implementation=subject.implementation,
    )  # fmt: skip
    assert error(loss.detach(), without.loss) < 1e-6
    assert not any(value.requires_grad for value in stats)
    keep = fresh.labels != IGNORE
    assert error(stats.logprob[keep].cpu().sum(), -without.loss.sum()) < 1e-6


@all_dtypes
@either
def test_twice_the_same_to_the_bit(subject: Subject, reduction: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(90, 40, 301, dtype, bias=True)
    torch.use_deterministic_algorithms(True)  # strictly: an operator that isn't raises
    one, other = (
        fused(subject, inputs, reduction, chunk_bytes=30_000, z_loss=0.1) for _ in range(2)
    )
    assert torch.equal(one.loss, other.loss)
    for name, gradient in one.gradients.items():
        assert torch.equal(gradient, other.gradients[name]), name


@either
def test_autocast(any_subject: Subject, reduction: str) -> None:
    """fp32 parameters, bf16 arithmetic: as if both were rounded first; gradients in fp32."""
    inputs = make_inputs()
    fresh = leaves_of(any_subject, inputs)
    with torch.autocast(any_subject.device, torch.bfloat16):
        loss = loss_of(any_subject, fresh, reduction)
    assert loss.dtype == torch.float32
    rounded = fused(any_subject, inputs.to(torch.bfloat16), reduction)
    assert torch.equal(loss.detach().double().cpu(), rounded.loss)
    hidden, weight = torch.autograd.grad(loss.sum(), [fresh.hidden, fresh.weight])
    assert hidden.dtype == weight.dtype == torch.float32 and weight.any()


def test_autocast_of_mixed_dtypes(any_subject: Subject) -> None:
    inputs = make_inputs()
    mixed = changed(inputs, weight=inputs.weight.to(torch.bfloat16)).to(any_subject.device)
    with torch.autocast(any_subject.device, torch.bfloat16):
        loss = loss_of(any_subject, mixed)
    assert error(loss, fused(any_subject, inputs.to(torch.bfloat16)).loss) == 0
