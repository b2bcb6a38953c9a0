"""Log-probabilities and entropies, and the preference and RL losses that are built on them."""

from __future__ import annotations

from collections.abc import Callable
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
    make_inputs,
    plain_logits,
    upstream_of,
)
from torch import Tensor

from ds_train.ops import linear_cross_entropy, linear_logprobs

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NAMES)
Logprobs = Callable[[Inputs], tuple[Tensor, Tensor]]


def plain_logprobs(inputs: Inputs, **transform: Any) -> tuple[Tensor, Tensor]:
    """Over whole logits: log-probability of the labels and entropy, shaped like the labels."""
    log_p = plain_logits(inputs, **transform).log_softmax(-1)
    keep = inputs.labels != IGNORE
    logprob = log_p.gather(-1, inputs.labels.where(keep, 0)[..., None])[..., 0]
    return logprob.where(keep, 0.0), -(log_p.exp() * log_p).sum(-1).where(keep, 0.0)


def fused_logprobs(subject: Subject, **options: Any) -> Logprobs:
    def function(inputs: Inputs) -> tuple[Tensor, Tensor]:
        found = linear_logprobs(
            inputs.hidden, inputs.weight, inputs.labels, bias=inputs.bias, return_entropy=True,
            implementation=subject.implementation, **options,
        )  # fmt: skip
        assert isinstance(found, tuple)
        return found

    return function


def gradients_of(
    inputs: Inputs, logprobs: Logprobs, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss of logprobs and entropies, and its gradients."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.leaves().items()}
    value = loss(*logprobs(changed(inputs, **leaves)))
    found = torch.autograd.grad(value, list(leaves.values()))
    return value.detach(), dict(zip(leaves, found, strict=True))


def compare(
    subject: Subject,
    inputs: Inputs,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    chunk_bytes: int | None = None,
    **transform: Any,
) -> None:
    """At most 1.5 times eager's error, of the loss and of each gradient."""

    def plain(inputs: Inputs) -> tuple[Tensor, Tensor]:
        return plain_logprobs(inputs, **transform)

    there, dtype = inputs.to(subject.device), inputs.hidden.dtype
    ours = gradients_of(there, fused_logprobs(subject, chunk_bytes=chunk_bytes, **transform), loss)
    eager = gradients_of(there, plain, loss)
    exact = gradients_of(inputs.to(torch.float64), plain, loss)
    narrow = dtype != torch.float32
    assert error(ours[0], exact[0]) <= max(
        1.5 * error(eager[0], exact[0]), 5e-3 if narrow else 1e-6
    )
    floor = torch.finfo(dtype).eps / 2 if narrow else 1e-6
    for name, wanted in exact[1].items():
        allowed = max(1.5 * error(eager[1][name], wanted), floor)
        found = error(ours[1][name], wanted)
        assert found <= allowed, f"{name}: {found:.2e}, and {allowed:.2e} is allowed"


@all_dtypes
@pytest.mark.parametrize("transform", [{}, {"softcap": 3.0}, {"logit_scale": 0.4, "softcap": 9.0}])
@pytest.mark.parametrize("chunk_bytes", [None, 3000])
def test_values(
    any_subject: Subject, transform: dict[str, Any], chunk_bytes: int | None, dtype: torch.dtype
) -> None:
    inputs = make_inputs(dtype=dtype, bias=True, spread=2.0)
    there = inputs.to(any_subject.device)
    ours = fused_logprobs(any_subject, chunk_bytes=chunk_bytes, **transform)(there)
    eager = plain_logprobs(there, **transform)
    exact = plain_logprobs(inputs.to(torch.float64), **transform)
    for got, theirs, wanted in zip(ours, eager, exact, strict=True):
        assert got.dtype == torch.float32 and got.shape == inputs.labels.shape
        assert not got.cpu()[inputs.labels == IGNORE].any()
        assert error(got, wanted) <= max(1.5 * error(theirs, wanted), 1e-6)


@all_dtypes
@pytest.mark.parametrize("what", ["logprob", "entropy", "both"])
@pytest.mark.parametrize("transform", [{}, {"softcap": 3.0, "logit_scale": 0.4}])
def test_gradients(
    any_subject: Subject, what: str, transform: dict[str, Any], dtype: torch.dtype
) -> None:
    def loss(logprob: Tensor, entropy: Tensor) -> Tensor:
        up = upstream_of(37).to(logprob)
        total = torch.zeros_like(up[0])
        if what != "entropy":
            total = total + (up * logprob).sum()
        return total if what == "logprob" else total + (up.flip(0) * entropy).sum()

    inputs = make_inputs(dtype=dtype, bias=True, spread=2.0)
    compare(any_subject, inputs, loss, chunk_bytes=3000, **transform)


def test_shape_of_any_batch(any_subject: Subject) -> None:
    flat = make_inputs(24)
    shaped = changed(flat, hidden=flat.hidden.view(2, 3, 4, 16), labels=flat.labels.view(2, 3, 4))
    function = fused_logprobs(any_subject)
    for one, other in zip(
        function(flat.to(any_subject.device)), function(shaped.to(any_subject.device)), strict=True
    ):
        assert other.shape == (2, 3, 4) and torch.equal(one, other.flatten())


def test_logprob_is_minus_the_loss_and_alone_without_entropy(any_subject: Subject) -> None:
    inputs = make_inputs(bias=True).to(any_subject.device)
    arguments = (inputs.hidden, inputs.weight, inputs.labels)
    options: dict[str, Any] = {"bias": inputs.bias, "implementation": any_subject.implementation}
    logprob = linear_logprobs(*arguments, **options)
    assert isinstance(logprob, Tensor)
    losses = linear_cross_entropy(*arguments, **options, reduction="none")
    assert error(logprob, -losses.cpu()) < 1e-7


@all_dtypes
def test_entropy_of_an_even_and_of_a_certain_choice(
    any_subject: Subject, dtype: torch.dtype
) -> None:
    weight = torch.zeros(50, 4)
    weight[7] = 100.0
    hidden = torch.tensor([[0.0] * 4, [1.0] * 4])
    _, entropy = linear_logprobs(
        hidden.to(any_subject.device, dtype), weight.to(any_subject.device, dtype),
        torch.tensor([3, 7], device=any_subject.device), return_entropy=True,
        implementation=any_subject.implementation,
    )  # fmt: skip
    assert entropy.tolist() == pytest.approx([torch.tensor(50.0).log().item(), 0.0], abs=1e-6)


@all_dtypes
def test_classes_at_minus_infinity_are_not_there(any_subject: Subject, dtype: torch.dtype) -> None:
    """p log p of p = 0 is 0, in the entropy and in its gradient."""
    inputs = make_inputs(20, 16, 53, dtype, bias=True)
    assert inputs.bias is not None
    gone = torch.arange(53) >= 40
    labels = torch.where(inputs.labels >= 40, 3, inputs.labels)
    masked = changed(inputs, labels=labels, bias=inputs.bias.masked_fill(gone, -torch.inf))
    fewer = changed(inputs, labels=labels, weight=inputs.weight[:40], bias=inputs.bias[:40])

    def loss(logprob: Tensor, entropy: Tensor) -> Tensor:
        return (upstream_of(20).to(logprob) * (logprob + 2 * entropy)).sum()

    ours, found = gradients_of(masked.to(any_subject.device), fused_logprobs(any_subject), loss)
    exact, wanted = gradients_of(fewer.to(torch.float64), plain_logprobs, loss)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert error(ours, exact) < tolerance
    assert error(found["hidden"], wanted["hidden"]) < tolerance
    for name in ("weight", "bias"):
        assert error(found[name][:40], wanted[name]) < tolerance, name
        assert not found[name][40:].any(), name


PAIRS, LENGTH = 4, 9


def completions(dtype: torch.dtype) -> Inputs:
    """Eight sequences of nine tokens, prompts and padding ignored: chosen first, then rejected."""
    inputs = make_inputs(2 * PAIRS * LENGTH, dtype=dtype, masked=0.0, spread=2.0)
    labels = inputs.labels.view(2 * PAIRS, LENGTH).clone()
    for row in range(2 * PAIRS):
        labels[row, : 1 + row % 3] = IGNORE
        labels[row, LENGTH - row % 4 :] = IGNORE
    hidden = inputs.hidden.view(2 * PAIRS, LENGTH, -1)
    return changed(inputs, hidden=hidden, labels=labels)


@all_dtypes
def test_direct_preference_optimisation(any_subject: Subject, dtype: torch.dtype) -> None:
    """DPO: Rafailov et al. 2023, equation 7."""
    g = torch.Generator().manual_seed(4)
    reference = torch.randn(2 * PAIRS, generator=g) * 2 - 20

    def loss(logprob: Tensor, _: Tensor) -> Tensor:
        ratio = logprob.sum(-1) - reference.to(logprob)
        chosen, rejected = ratio.chunk(2)
        return -F.logsigmoid(0.1 * (chosen - rejected)).mean()

    compare(any_subject, completions(dtype), loss, chunk_bytes=8000)


@all_dtypes
def test_group_relative_policy_optimisation(any_subject: Subject, dtype: torch.dtype) -> None:
    """GRPO: Shao et al. 2024, equation 3, with an entropy bonus; temperature 1/0.8."""
    inputs = completions(dtype)
    g = torch.Generator().manual_seed(4)
    noise = torch.randn(inputs.labels.shape, generator=g) * 0.3
    old, _ = plain_logprobs(inputs.to(torch.float64), logit_scale=0.8)
    old, reference = old + noise, old - noise
    advantage = torch.randn(2 * PAIRS, 1, generator=g)
    mask = (inputs.labels != IGNORE).double()

    def loss(logprob: Tensor, entropy: Tensor) -> Tensor:
        before, base, gain, kept = (t.to(logprob) for t in (old, reference, advantage, mask))
        ratio = (logprob - before).exp()
        policy = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
        divergence = (base - logprob).exp() - (base - logprob) - 1
        per_token = (policy - 0.04 * divergence + 0.01 * entropy) * kept
        return -(per_token.sum(-1) / kept.sum(-1)).mean()

    compare(any_subject, inputs, loss, chunk_bytes=8000, logit_scale=0.8)
