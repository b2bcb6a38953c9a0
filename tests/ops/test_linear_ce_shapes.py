"""Random shapes, and what must not change the loss: chunks, order, a constant, ignored rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from loss_cases import (
    DTYPE_NAMES,
    DTYPES,
    IGNORE,
    Inputs,
    Outcome,
    Subject,
    changed,
    check,
    error,
    fused,
    make_inputs,
    truth,
    upstream_of,
)

from ds_train.ops import linear_cross_entropy

REDUCTIONS = st.sampled_from(["sum", "mean", "none"])
ROWS = st.sampled_from([0, 1, 2, 7, 16, 31, 33, 64, 127, 128, 129])
WIDTHS = st.sampled_from([1, 2, 8, 31, 32, 64, 65, 257])
CLASSES = st.sampled_from([1, 2, 3, 15, 16, 17, 64, 127, 1000, 4097])
CHUNKS = st.sampled_from([None, 1, 1000, 30_000, 10**8])
SHAPES = st.tuples(ROWS, WIDTHS, CLASSES)

few = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    # the fixture only names the implementation; nothing is left over between examples
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NAMES)


@few
@given(
    shape=SHAPES,
    reduction=REDUCTIONS,
    chunk_bytes=CHUNKS,
    dtype=st.sampled_from(DTYPES),
    masked=st.sampled_from([0.0, 0.3, 0.9]),
    tensors=st.fixed_dictionaries({key: st.booleans() for key in ("bias", "token_weights")}),
    options=st.fixed_dictionaries(
        {
            "label_smoothing": st.sampled_from([0.0, 0.1]),
            "z_loss": st.sampled_from([0.0, 0.01]),
            "softcap": st.sampled_from([None, 4.0]),
        }
    ),
    seed=st.integers(0, 5),
)
@example(
    (128, 64, 50257), "mean", None, torch.bfloat16, 0.0, {}, {}, 0
)  # a real vocabulary, and one that nothing divides
def test_random_shapes(
    subject: Subject,
    shape: tuple[int, int, int],
    reduction: str,
    chunk_bytes: int | None,
    dtype: torch.dtype,
    masked: float,
    tensors: dict[str, bool],
    options: dict[str, Any],
    seed: int,
) -> None:
    n, d, v = shape
    inputs = make_inputs(n, d, v, dtype, seed=seed, masked=masked, spread=2.0, **tensors)
    if reduction == "mean" and not has_weight(inputs):
        reduction = "sum"  # 0/0 in eager; `test_linear_ce_extremes.py` has it
    # of one or two rows, chance decides whose rounding is luckier
    check(subject, inputs, reduction, extra={"chunk_bytes": chunk_bytes}, slack=4, **options)


def has_weight(inputs: Inputs) -> bool:
    keep = inputs.labels != IGNORE
    if inputs.token_weights is not None:
        keep = keep & (inputs.token_weights > 0)
    return bool(keep.any())


def close(one: Outcome, other: Outcome, tolerance: float) -> None:
    assert error(one.loss, other.loss) <= tolerance
    for name, gradient in other.gradients.items():
        found = error(one.gradients[name], gradient)
        assert found <= tolerance, f"{name}: {found:.2e}"


# each of the two roundings, and fp32 sums in another order
AGREE = {torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@all_dtypes
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_chunks_change_nothing_but_rounding(
    subject: Subject, reduction: str, dtype: torch.dtype
) -> None:
    inputs = make_inputs(130, 48, 517, dtype, bias=True)
    whole = fused(subject, inputs, reduction, chunk_bytes=10**9, z_loss=0.01)
    for chunk_bytes in (1, 20_000, 100_003):
        parts = fused(subject, inputs, reduction, chunk_bytes=chunk_bytes, z_loss=0.01)
        close(parts, whole, AGREE[dtype])


@few
@given(order=st.permutations(list(range(20))), masked=st.sampled_from([0.0, 0.4]))
def test_order_of_rows(subject: Subject, order: list[int], masked: float) -> None:
    inputs = make_inputs(20, 24, 65, masked=masked, token_weights=True)
    assert inputs.token_weights is not None
    losses = per_row(subject, inputs)
    shuffled = per_row(
        subject,
        changed(
            inputs,
            hidden=inputs.hidden[order],
            labels=inputs.labels[order],
            token_weights=inputs.token_weights[order],
        ),
        upstream_of(20)[order],
    )
    for name in ("loss", "hidden"):
        assert error(shuffled[name], losses[name][order]) < 1e-6, name
    assert error(shuffled["weight"], losses["weight"]) < 1e-6


def per_row(
    subject: Subject, inputs: Inputs, upstream: torch.Tensor | None = None, **options: Any
) -> dict[str, torch.Tensor]:
    """Losses and gradients of reduction none with a given gradient for each row."""
    there = inputs.to(subject.device)
    hidden, weight = there.hidden.requires_grad_(), there.weight.requires_grad_()
    losses = linear_cross_entropy(
        hidden, weight, there.labels, **there.arguments(), reduction="none",
        implementation=subject.implementation, **options,
    )  # fmt: skip
    upstream = upstream_of(len(inputs.labels)) if upstream is None else upstream
    (losses * upstream.to(losses)).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    found = {"loss": losses.detach(), "hidden": hidden.grad, "weight": weight.grad}
    return {name: tensor.cpu() for name, tensor in found.items()}


@pytest.mark.parametrize("shift", [1e4, 1e6])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_constant_on_all_logits(subject: Subject, shift: float, reduction: str) -> None:
    """Through the bias; logsumexp - z would lose everything behind the comma.

    The bias is a multiple of the fp32 spacing there, and the products are whole numbers: the sum
    is exact, so that what is lost is lost by the loss.
    """
    g = torch.Generator().manual_seed(0)
    inputs = changed(
        make_inputs(n=40, v=61),
        hidden=torch.randint(-1, 2, (40, 16), generator=g).float(),
        weight=torch.randint(-1, 2, (61, 16), generator=g).float(),
        bias=torch.full((61,), shift),
    )
    exact = truth(changed(inputs, bias=torch.zeros(61)), reduction)
    ours = fused(subject, inputs, reduction)
    assert error(ours.loss, exact.loss) < 1e-6
    for name in ("hidden", "weight"):
        assert error(ours.gradients[name], exact.gradients[name]) < 1e-5, name


@all_dtypes
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_masking_rows_is_removing_them(
    subject: Subject, reduction: str, dtype: torch.dtype
) -> None:
    inputs = make_inputs(60, 40, 99, dtype, masked=0.5, token_weights=True)
    assert inputs.token_weights is not None
    keep = inputs.labels != IGNORE
    fewer = changed(
        inputs,
        hidden=inputs.hidden[keep],
        labels=inputs.labels[keep],
        token_weights=inputs.token_weights[keep],
    )
    masked, removed = fused(subject, inputs, reduction), fused(subject, fewer, reduction)
    assert torch.equal(masked.loss, removed.loss)
    assert torch.equal(masked.gradients["weight"], removed.gradients["weight"])
    assert torch.equal(masked.gradients["hidden"][keep], removed.gradients["hidden"])


@all_dtypes
def test_values_in_ignored_rows_are_never_looked_at(subject: Subject, dtype: torch.dtype) -> None:
    inputs = make_inputs(dtype=dtype)
    hidden = inputs.hidden.clone()
    hidden[inputs.labels == IGNORE] = torch.nan
    for reduction in ("sum", "none"):
        clean = fused(subject, inputs, reduction)
        spoiled = fused(subject, changed(inputs, hidden=hidden), reduction)
        assert torch.equal(clean.loss, spoiled.loss)
        for name, gradient in clean.gradients.items():
            assert torch.equal(gradient, spoiled.gradients[name]), name


@all_dtypes
@pytest.mark.parametrize("scale", [0.25, 1024.0, 0.0])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_gradients_are_linear_in_the_upstream_gradient(
    subject: Subject, scale: float, reduction: str, dtype: torch.dtype
) -> None:
    """Powers of two scale without rounding, so equal means equal."""
    inputs = make_inputs(dtype=dtype, spread=0.5)

    def gradients(factor: float) -> list[torch.Tensor]:
        there = inputs.to(subject.device)
        leaves = [leaf.requires_grad_() for leaf in there.leaves().values()]
        loss = linear_cross_entropy(
            *leaves, there.labels, reduction=reduction, implementation=subject.implementation
        )
        return list(torch.autograd.grad(loss.sum() * factor, leaves))

    for one, scaled in zip(gradients(1.0), gradients(scale), strict=True):
        if dtype == torch.float16:  # numbers below 6e-5 lose bits on the way
            assert error(scaled.float(), one.float() * scale) < 2e-3
        else:
            assert torch.equal(scaled, one * scale)


@all_dtypes
def test_sum_is_mean_times_count_and_the_sum_of_none(subject: Subject, dtype: torch.dtype) -> None:
    inputs = make_inputs(dtype=dtype)
    count = int((inputs.labels != IGNORE).sum())
    losses = {r: fused(subject, inputs, r).loss for r in ("sum", "mean", "none")}
    assert losses["mean"].item() * count == pytest.approx(losses["sum"].item(), rel=1e-6)
    assert losses["none"].sum().item() == pytest.approx(losses["sum"].item(), rel=1e-6)


@all_dtypes
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_weights_of_one_are_no_weights(
    subject: Subject, reduction: str, dtype: torch.dtype
) -> None:
    inputs = make_inputs(dtype=dtype)
    ones = changed(inputs, token_weights=torch.ones(37), class_weight=torch.ones(53))
    options: dict[str, Any] = {"label_smoothing": 0.1}
    weighted, plain = (fused(subject, one, reduction, **options) for one in (ones, inputs))
    close(weighted, plain, 1e-6 if dtype == torch.float32 else AGREE[dtype] / 4)
