"""Faults that other implementations of this loss have had, as tests of ours.

Each was silent: a number that is plausible and wrong.
"""

from __future__ import annotations

import pytest
import torch
from loss_cases import DTYPE_NAMES, DTYPES, Subject, changed, error, fused, make_inputs, truth

from ds_train.ops import linear_cross_entropy

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NAMES)


@all_dtypes
@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("scale", [1.0, 256.0])
def test_gradient_accumulation_and_loss_scale_reach_the_weight(
    subject: Subject, micro_batches: int, scale: float, dtype: torch.dtype
) -> None:
    """DeepSpeed 0.19.8, TiledFusedLogitsLoss: the head's gradient ignores the upstream gradient,
    and is then `micro_batches` times too large, or `scale` times too small."""
    inputs = make_inputs(48, dtype=dtype, masked=0.2)
    exact = truth(inputs).gradients
    there = inputs.to(subject.device)
    hidden, weight = there.hidden.requires_grad_(), there.weight.requires_grad_()
    rows = torch.arange(48).chunk(micro_batches)
    for part in rows:
        loss = linear_cross_entropy(
            hidden[part], weight, there.labels[part], implementation=subject.implementation
        )
        (loss * (scale / micro_batches)).backward()
    for name, leaf in (("weight", weight), ("hidden", hidden)):
        assert leaf.grad is not None
        expected = exact[name] / 0.7 * scale / micro_batches
        assert leaf.grad.norm().item() == pytest.approx(expected.norm().item(), rel=5e-3)
        assert error(leaf.grad, expected) < (1e-5 if dtype == torch.float32 else 1e-2), name


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=DTYPE_NAMES[1:])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_loss_of_many_chunks_is_summed_and_returned_in_fp32(
    subject: Subject, dtype: torch.dtype, reduction: str
) -> None:
    """torch 2.13, F.linear_cross_entropy: losses added up in bf16 are wrong by 1 to 36 %."""
    inputs = make_inputs(700, 32, 2000, dtype, masked=0.0)
    there = inputs.to(subject.device)
    loss = linear_cross_entropy(
        there.hidden, there.weight, there.labels, reduction=reduction, chunk_bytes=40_000,
        implementation=subject.implementation,
    )  # fmt: skip
    assert loss.dtype == torch.float32
    assert loss.to(dtype).float().ne(loss).any()  # not a rounded number
    exact = truth(inputs, reduction).loss
    assert error(loss, exact) < 2e-3
    assert loss.sum().item() == pytest.approx(exact.sum().item(), rel=2e-4)


@all_dtypes
def test_each_row_has_its_own_upstream_gradient(subject: Subject, dtype: torch.dtype) -> None:
    """Liger-Kernel before 0.8.2, reduction none: all rows were scaled by the first one's."""
    inputs = make_inputs(20, dtype=dtype, masked=0.0)
    there = inputs.to(subject.device)
    weight = there.weight.requires_grad_()
    losses = linear_cross_entropy(
        there.hidden, weight, there.labels, reduction="none", implementation=subject.implementation
    )
    upstream = torch.zeros(20, device=subject.device)
    upstream[3], upstream[11] = 2.0, -5.0  # the first row's is 0
    (gradient,) = torch.autograd.grad(losses, weight, upstream)
    alone = [
        truth(changed(inputs, hidden=inputs.hidden[i : i + 1], labels=inputs.labels[i : i + 1]))
        for i in (3, 11)
    ]
    expected = (2 * alone[0].gradients["weight"] - 5 * alone[1].gradients["weight"]) / 0.7
    assert error(gradient, expected) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_no_gradient_is_lost_in_many_chunks(subject: Subject) -> None:
    """Liger-Kernel, CCE: a weight gradient that is added up in bf16 loses its small summands."""
    inputs = make_inputs(512, 16, 64, torch.bfloat16, masked=0.0, spread=0.3)
    exact = truth(inputs).gradients["weight"]
    few, many = (
        fused(subject, inputs, chunk_bytes=size).gradients["weight"] for size in (10**8, 2000)
    )
    assert error(many, exact) <= max(1.5 * error(few, exact), 4e-3)


def test_loss_is_never_negative(subject: Subject) -> None:
    """CCE: the label's logit from another kernel than the sum could exceed it."""
    for seed in range(5):
        inputs = make_inputs(64, 16, 40, torch.bfloat16, seed=seed, spread=30.0, masked=0.0)
        labels = (inputs.hidden.double() @ inputs.weight.double().t()).argmax(-1)
        losses = fused(subject, changed(inputs, labels=labels), "none").loss
        assert (losses >= 0).all()
