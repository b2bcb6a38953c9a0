"""Every feature of the loss, alone and combined, in every dtype, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loss_cases import (
    DTYPE_NAMES,
    DTYPES,
    IGNORE,
    Inputs,
    Subject,
    changed,
    check,
    error,
    fused,
    make_inputs,
    plain_logits,
    truth,
)

from ds_train.ops import linear_cross_entropy

TENSORS = ("bias", "class_weight", "token_weights")
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "smoothing-0.1": {"label_smoothing": 0.1},
    "smoothing-0.9": {"label_smoothing": 0.9},
    "smoothing-1": {"label_smoothing": 1.0},
    "z-loss": {"z_loss": 0.03},
    "softcap-1": {"softcap": 1.0},
    "softcap-30": {"softcap": 30.0},
    "scale": {"logit_scale": 0.25},
    "class-weight": {"class_weight": True},
    "class-weight-smoothing": {"class_weight": True, "label_smoothing": 0.2},
    "token-weights": {"token_weights": True},
    "bias-softcap-scale": {"bias": True, "softcap": 2.0, "logit_scale": 1.7},
    "smoothing-z-loss": {"label_smoothing": 0.1, "z_loss": 0.01},
    "smoothing-softcap": {"label_smoothing": 0.1, "softcap": 3.0},
    "everything": {
        "bias": True,
        "class_weight": True,
        "token_weights": True,
        "label_smoothing": 0.1,
        "z_loss": 0.02,
        "softcap": 5.0,
        "logit_scale": 0.7,
    },
}

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NAMES)


def case(name: str, dtype: torch.dtype, **sizes: Any) -> tuple[Inputs, dict[str, Any]]:
    settings = FEATURES[name]
    tensors = {key: value for key, value in settings.items() if key in TENSORS}
    inputs = make_inputs(dtype=dtype, spread=2.0, **tensors, **sizes)
    return inputs, {key: value for key, value in settings.items() if key not in TENSORS}


@all_dtypes
@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_feature(any_subject: Subject, name: str, reduction: str, dtype: torch.dtype) -> None:
    inputs, settings = case(name, dtype)
    check(any_subject, inputs, reduction, **settings)


@all_dtypes
@pytest.mark.parametrize("name", ["plain", "everything"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_many_chunks_and_odd_sizes(
    subject: Subject, name: str, reduction: str, dtype: torch.dtype
) -> None:
    inputs, settings = case(name, dtype, n=150, d=72, v=1003)
    check(subject, inputs, reduction, **settings, extra={"chunk_bytes": 50_000})


@pytest.mark.parametrize("ignore_index", [-100, 2, 52, -7, 10**6])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_any_ignore_index(any_subject: Subject, ignore_index: int, reduction: str) -> None:
    inputs = make_inputs()
    labels = torch.where(inputs.labels == IGNORE, ignore_index, inputs.labels)
    assert (labels == ignore_index).sum() > 5
    ours = check(any_subject, changed(inputs, labels=labels), reduction, ignore_index=ignore_index)
    if ignore_index == IGNORE or not 0 <= ignore_index < 53:
        assert torch.equal(ours.loss, fused(any_subject, inputs, reduction).loss)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("masked", [0.0, 0.5])
def test_number_of_supervised_tokens_changes_nothing(
    subject: Subject, reduction: str, masked: float
) -> None:
    inputs = make_inputs(masked=masked)
    counted = fused(subject, inputs, reduction)
    count = int((inputs.labels != IGNORE).sum())
    known = fused(subject, inputs, reduction, num_supervised=count)
    assert torch.equal(counted.loss, known.loss)
    for name, gradient in counted.gradients.items():
        assert torch.equal(gradient, known.gradients[name]), name


@all_dtypes
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("name", ["plain", "bias-softcap-scale", "everything"])
def test_statistics(any_subject: Subject, reduction: str, name: str, dtype: torch.dtype) -> None:
    inputs, settings = case(name, dtype)
    there = inputs.to(any_subject.device)
    loss, stats = linear_cross_entropy(
        there.hidden, there.weight, there.labels, **there.arguments(), reduction=reduction,
        return_stats=True, implementation=any_subject.implementation, **settings,
    )  # fmt: skip
    assert error(loss, truth(inputs, reduction, **settings).loss) < 2e-3
    transform = {k: v for k, v in settings.items() if k in ("logit_scale", "softcap")}
    keep = inputs.labels != IGNORE
    eager, exact = (
        one[keep].log_softmax(-1)
        for one in (
            plain_logits(there, **transform).cpu(),
            plain_logits(inputs.to(torch.float64), **transform),
        )
    )
    for field, of in {
        "logprob": lambda log_p: log_p.gather(1, inputs.labels[keep][:, None])[:, 0],
        "entropy": lambda log_p: -(log_p.exp() * log_p).sum(-1),
    }.items():
        got = getattr(stats, field).cpu()
        assert got.dtype == torch.float32 and got.shape == inputs.labels.shape
        assert not got.requires_grad and not got[~keep].any()
        assert error(got[keep], of(exact)) <= max(1.5 * error(of(eager), of(exact)), 1e-6), field
    lse = plain_logits(inputs.to(torch.float64), **transform)[keep].logsumexp(-1)
    eager_lse = plain_logits(there, **transform).cpu()[keep].logsumexp(-1)
    assert error(stats.logsumexp.cpu()[keep], lse) <= max(1.5 * error(eager_lse, lse), 1e-6)
    assert stats.correct.dtype == torch.bool and not stats.correct.cpu()[~keep].any()
    top = exact.topk(2).values
    clear = top[:, 0] - top[:, 1] > 0.1
    right = exact.argmax(-1) == inputs.labels[keep]
    assert torch.equal(stats.correct.cpu()[keep][clear], right[clear])


@all_dtypes
def test_of_equal_logits_the_first_is_the_prediction(
    any_subject: Subject, dtype: torch.dtype
) -> None:
    """Columns 3, 17 and 40 are equal and largest, wherever a kernel splits the vocabulary."""
    weight = torch.zeros(53, 8, dtype=dtype)
    weight[[3, 17, 40]] = 1
    labels = torch.arange(53)
    _, stats = linear_cross_entropy(
        torch.ones(53, 8, dtype=dtype, device=any_subject.device),
        weight.to(any_subject.device),
        labels.to(any_subject.device),
        return_stats=True,
        implementation=any_subject.implementation,
    )
    assert stats.correct.nonzero().flatten().tolist() == [3]


def test_mean_divides_by_the_weights_of_supervised_tokens(any_subject: Subject) -> None:
    inputs = make_inputs(class_weight=True, token_weights=True)
    keep = inputs.labels != IGNORE
    assert inputs.class_weight is not None and inputs.token_weights is not None
    denominator = (inputs.class_weight[inputs.labels[keep]] * inputs.token_weights[keep]).sum()
    total, mean = (fused(any_subject, inputs, reduction).loss for reduction in ("sum", "mean"))
    assert mean.item() == pytest.approx((total / denominator).item(), rel=1e-6)


@pytest.mark.parametrize("shape", [(37,), (1, 37), (37, 1), (2, 3, 7)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_any_number_of_batch_dimensions(
    subject: Subject, shape: tuple[int, ...], reduction: str
) -> None:
    n = torch.Size(shape).numel()
    flat = make_inputs(n, token_weights=True)
    assert flat.token_weights is not None
    shaped = changed(
        flat,
        hidden=flat.hidden.view(*shape, -1),
        labels=flat.labels.view(shape),
        token_weights=flat.token_weights.view(shape),
    )
    one, other = fused(subject, flat, reduction), fused(subject, shaped, reduction)
    assert other.loss.shape == (shape if reduction == "none" else ())
    assert torch.equal(one.loss.flatten(), other.loss.flatten())
    assert other.gradients["hidden"].shape == (*shape, 16)
    for name, gradient in one.gradients.items():
        assert torch.equal(gradient.flatten(), other.gradients[name].flatten())
