"""Where formulas break: nothing to do, infinities, NaN, huge numbers, odd memory layouts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
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
    plain_logits,
    truth,
    upstream_of,
)
from torch import Tensor

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NAMES)
every_reduction = pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
INF = math.inf


def given_logits(logits: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32) -> Inputs:
    """Inputs whose product is `logits` [n, v] to the bit, if they are representable in `dtype`.

    The hidden states are rows of the identity, so that row i picks column i of the weight.
    """
    n = len(logits)
    return Inputs(torch.eye(n).to(dtype), logits.t().contiguous().to(dtype), labels)


def with_bias(bias: Tensor, labels: Tensor, dtype: torch.dtype = torch.float32) -> Inputs:
    """Inputs whose logits are the bias in every row."""
    n, v = len(labels), len(bias)
    return Inputs(torch.zeros(n, 8).to(dtype), torch.zeros(v, 8).to(dtype), labels, bias=bias)


def assert_zero(outcome: Outcome) -> None:
    assert not outcome.loss.any()
    for name, gradient in outcome.gradients.items():
        assert not gradient.any(), name  # NaN is truthy


@every_reduction
@all_dtypes
def test_all_ignored(any_subject: Subject, reduction: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(dtype=dtype, masked=1.0, bias=True)
    assert (inputs.labels == IGNORE).all()
    assert_zero(fused(any_subject, inputs, reduction, z_loss=0.1, label_smoothing=0.1))
    assert_zero(fused(any_subject, inputs, reduction, num_supervised=0))


@every_reduction
@all_dtypes
def test_no_rows(any_subject: Subject, reduction: str, dtype: torch.dtype) -> None:
    outcome = fused(any_subject, make_inputs(0, dtype=dtype, bias=True), reduction)
    assert outcome.loss.numel() == (0 if reduction == "none" else 1)
    assert_zero(outcome)


@every_reduction
def test_weights_of_zero(any_subject: Subject, reduction: str) -> None:
    nothing = changed(make_inputs(), token_weights=torch.zeros(37))
    assert_zero(fused(any_subject, nothing, reduction))


@every_reduction
@all_dtypes
@pytest.mark.parametrize("position", [0, 17, 36])
def test_one_valid_row(
    any_subject: Subject, reduction: str, dtype: torch.dtype, position: int
) -> None:
    inputs = make_inputs(dtype=dtype)
    labels = torch.full_like(inputs.labels, IGNORE)
    labels[position] = 11
    check(any_subject, changed(inputs, labels=labels), reduction, slack=2)


@every_reduction
@all_dtypes
def test_one_class(any_subject: Subject, reduction: str, dtype: torch.dtype) -> None:
    outcome = fused(any_subject, make_inputs(v=1, dtype=dtype), reduction)
    assert_zero(outcome)


@all_dtypes
@pytest.mark.parametrize("sizes", [(1, 1, 2), (1, 8, 3), (3, 1, 17), (5, 7, 129), (17, 33, 1025)])
def test_odd_sizes(any_subject: Subject, sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(any_subject, make_inputs(*sizes, dtype=dtype, masked=0.0), "none", slack=4)


@all_dtypes
@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("row", [0, 9])
def test_nan_and_infinity_poison_their_own_row_only(
    any_subject: Subject, bad: float, row: int, dtype: torch.dtype
) -> None:
    inputs = make_inputs(12, dtype=dtype, masked=0.0)
    hidden = inputs.hidden.clone()
    hidden[row, 3] = bad
    spoiled = fused(any_subject, changed(inputs, hidden=hidden), "none", chunk_bytes=3000)
    clean = fused(any_subject, inputs, "none", chunk_bytes=3000)
    others = torch.arange(12) != row
    assert spoiled.loss[row].isnan() and spoiled.gradients["hidden"][row].isnan().any()
    assert torch.equal(spoiled.loss[others], clean.loss[others])
    assert torch.equal(spoiled.gradients["hidden"][others], clean.gradients["hidden"][others])


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("column", [0, 5, 52])
def test_a_logit_of_nan_or_infinity_makes_its_row_nan(
    any_subject: Subject, bad: float, column: int
) -> None:
    bias = torch.zeros(53)
    bias[column] = bad
    outcome = fused(any_subject, with_bias(bias, torch.tensor([5, 6])), "none")
    assert outcome.loss.isnan().all()


@all_dtypes
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}],
    ids=["plain", "smoothing", "z-loss"],
)
def test_classes_at_minus_infinity_are_not_there(
    any_subject: Subject, dtype: torch.dtype, softcap: float | None, options: dict[str, Any]
) -> None:
    """The same loss and gradients as without these classes."""
    inputs = make_inputs(20, 16, 53, dtype, bias=True, masked=0.2)
    gone = torch.zeros(53, dtype=torch.bool)
    gone[[0, 1, 7, 8, 15, 16, 31, 50, 52]] = True
    renumbered = (~gone).cumsum(0) - 1
    keep = inputs.labels != IGNORE
    labels = torch.where(gone[inputs.labels.clamp_min(0)] & keep, 20, inputs.labels)
    assert inputs.bias is not None
    masked = changed(inputs, labels=labels, bias=inputs.bias.masked_fill(gone, -INF))
    fewer = changed(
        inputs,
        weight=inputs.weight[~gone],
        bias=inputs.bias[~gone],
        labels=torch.where(labels == IGNORE, IGNORE, renumbered[labels.clamp_min(0)]),
    )
    if softcap is not None:  # a cap makes them finite: -softcap
        exact = truth(masked, "none", softcap=softcap, **options)
        ours = fused(any_subject, masked, "none", softcap=softcap, **options)
        assert ours.loss.isfinite().all()
        assert error(ours.loss, exact.loss) < (1e-6 if dtype == torch.float32 else 2e-3)
        assert error(ours.gradients["hidden"], exact.gradients["hidden"]) < 1e-2
        return
    ours = fused(any_subject, masked, "none", **options)
    exact = truth(fewer, "none", **options)
    if options.get("label_smoothing"):
        if any_subject.implementation == "reference":  # as torch: every class has to be likely
            assert (ours.loss[keep] == INF).all()
            return
        exact = smoothed_over_some(fewer, 53, **options)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    assert error(ours.loss, exact.loss) < tolerance
    assert error(ours.gradients["hidden"], exact.gradients["hidden"]) < tolerance
    for name in ("weight", "bias"):
        assert error(ours.gradients[name][~gone], exact.gradients[name]) < tolerance, name
        assert not ours.gradients[name][gone].any(), name


def smoothed_over_some(inputs: Inputs, num_classes: int, label_smoothing: float) -> Outcome:
    """Label smoothing where further classes, up to `num_classes`, are at -inf: these add nothing
    to the sum of the logits, while the share of each class stays 1/num_classes."""
    inputs = inputs.to(torch.float64)
    leaves = {name: leaf.requires_grad_() for name, leaf in inputs.leaves().items()}
    logits = plain_logits(inputs)
    log_p, keep = logits.log_softmax(-1), inputs.labels != IGNORE
    right = log_p.gather(1, inputs.labels.where(keep, 0)[:, None])[:, 0]
    even = (num_classes * logits.logsumexp(-1) - logits.sum(-1)) / num_classes
    losses = (label_smoothing * even - (1 - label_smoothing) * right).where(keep, 0.0)
    upstream = upstream_of(len(losses)).double()
    gradients = torch.autograd.grad(losses, list(leaves.values()), upstream)
    return Outcome(losses.detach(), dict(zip(leaves, gradients, strict=True)))


def test_a_label_at_minus_infinity_costs_infinitely_much(any_subject: Subject) -> None:
    logits = torch.zeros(2, 20)
    logits[0, 4] = -INF
    # through the bias, as -inf times the zeros of the identity would be NaN
    inputs = with_bias(logits[0], torch.tensor([4, 5]))
    outcome = fused(any_subject, inputs, "none")
    assert outcome.loss[0] == INF
    assert outcome.loss[1].item() == pytest.approx(math.log(19), rel=1e-6)


def test_a_row_of_minus_infinity_is_nan(any_subject: Subject) -> None:
    inputs = with_bias(torch.full((20,), -INF), torch.tensor([3]))
    assert fused(any_subject, inputs, "none").loss.isnan().all()


@all_dtypes
@every_reduction
def test_huge_logits(any_subject: Subject, dtype: torch.dtype, reduction: str) -> None:
    """Up to 1e4: exp of them overflows in every dtype."""
    inputs = make_inputs(30, 16, 70, dtype, spread=2500.0, masked=0.1)
    outcome = fused(any_subject, inputs, reduction)
    assert outcome.loss.isfinite().all()
    exact = truth(inputs, reduction)
    assert error(outcome.loss, exact.loss) < (1e-6 if dtype == torch.float32 else 4e-3)
    assert all(gradient.isfinite().all() for gradient in outcome.gradients.values())


@pytest.mark.parametrize("common", [1e8, -1e8, 1e30, -1e30, 0.0])
@pytest.mark.parametrize("v", [2, 53, 1000])
def test_equal_logits_cost_the_logarithm_of_their_number(
    any_subject: Subject, common: float, v: int
) -> None:
    inputs = with_bias(torch.full((v,), common), torch.tensor([0, 1, v - 1]))
    outcome = fused(any_subject, inputs, "none")
    assert outcome.loss.tolist() == pytest.approx([math.log(v)] * 3, rel=2e-7)
    assert outcome.gradients["bias"].isfinite().all()


@all_dtypes
@pytest.mark.parametrize("margin", [6.0, 9.0, 12.0])
def test_sure_and_right(any_subject: Subject, dtype: torch.dtype, margin: float) -> None:
    """As p nears 1, p - 1 loses every digit; -expm1(log p) does not."""
    labels = torch.tensor([2, 17, 39])
    logits = torch.zeros(3, 40)
    logits[torch.arange(3), labels] = margin
    inputs = given_logits(logits, labels, dtype)
    ours, exact = fused(any_subject, inputs, "none"), truth(inputs, "none")
    # fp32 holds 1 + 39 exp(-margin) no better than this
    resolution = 4 * torch.finfo(torch.float32).eps / -math.expm1(-exact.loss[0].item())
    assert error(ours.loss, exact.loss) < resolution
    if any_subject.implementation == "reference":  # p - 1 is how torch has it
        return
    at_labels = (outcome.gradients["weight"][labels, torch.arange(3)] for outcome in (ours, exact))
    assert error(*at_labels) < resolution + torch.finfo(dtype).eps


@all_dtypes
def test_surer_than_fp32_can_say(any_subject: Subject, dtype: torch.dtype) -> None:
    logits = torch.zeros(1, 40)
    logits[0, 7] = 60.0
    outcome = fused(any_subject, given_logits(logits, torch.tensor([7]), dtype), "none")
    assert 0 <= outcome.loss.item() < 1e-6
    assert outcome.gradients["weight"].abs().max() < 1e-6


@all_dtypes
def test_sure_and_wrong(any_subject: Subject, dtype: torch.dtype) -> None:
    """exp underflows; the loss is the margin, and the gradient 1 and -1."""
    logits = torch.zeros(2, 40)
    logits[:, 7] = 512.0
    outcome = fused(any_subject, given_logits(logits, torch.tensor([3, 7]), dtype), "none")
    assert outcome.loss.tolist() == pytest.approx([512.0, 0.0], rel=1e-6)
    gradient = outcome.gradients["weight"][:, 0]
    assert gradient[7].item() == pytest.approx(-gradient[3].item(), rel=1e-6) != 0
