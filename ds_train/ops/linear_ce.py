"""LM head + cross-entropy as one function that never holds the logits.

The public face: arguments are checked here, reductions are made here. `fused_sum.py` and
`fused_tokens.py` have the operators behind it, `problem.py` what they compute, `csrc/README.md` how
the native ones do it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ds_train.ops.arguments import Arguments, checked
from ds_train.ops.fused_sum import linear_cross_entropy_sum
from ds_train.ops.fused_tokens import token_statistics
from ds_train.ops.implementations import Implementation
from ds_train.ops.reference import IGNORE, reference_logits, reference_losses
from ds_train.ops.rows import SupervisedRows, check_values
from ds_train.ops.terms import Terms, label_weights

Reduction = Literal["sum", "mean", "none"]


class TokenStats(NamedTuple):
    """Numbers about each token, shaped like the labels; zero where ignored; no gradient."""

    logprob: Tensor
    """fp32, log-probability of the label"""
    logsumexp: Tensor
    """fp32"""
    entropy: Tensor
    """fp32, of the predicted distribution, in nats"""
    correct: Tensor
    """bool: the first largest logit is the label's"""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    reduction: Reduction = "sum",
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    class_weight: Tensor | None = None,
    token_weights: Tensor | None = None,
    num_supervised: int | None = None,
    return_stats: bool = False,
    chunk_bytes: int | None = None,
    implementation: Implementation = "auto",
) -> Tensor | tuple[Tensor, TokenStats]:
    """Cross-entropy of softmax(softcap(logit_scale (hidden weight^T + bias))) with the labels.

    A token's loss is t ((1 - s) c_y (-log p_y) + s/v sum_j c_j (-log p_j) + z_loss logsumexp^2),
    with its token weight t, the class weights c and the label smoothing s.

    Args:
        hidden: [..., d] fp32, bf16 or fp16 (fp64 in the reference and in `chunked`).
        weight: [v, d] of the same dtype.
        labels: [...] integers in [0, v), or `ignore_index`: such rows cost nothing.
        bias: [v].
        reduction: `mean` divides by the sum of t c_y over supervised tokens, which is their
            number without weights; `none` computes the logits once more in the backward pass.
        label_smoothing: s, in [0, 1].
        z_loss: factor of logsumexp^2 (PaLM, section 5).
        softcap: c in c tanh(z / c), as Gemma has it.
        logit_scale: factor of the logits before the cap: 1/temperature.
        class_weight: [v], 0 or more, as in `torch.nn.functional.cross_entropy`.
        token_weights: [...] like labels, 0 or more.
        num_supervised: how many labels are not `ignore_index`, if the caller knows. Without it a
            CUDA device has to be asked, which waits for it. One that is wrong is an error on the
            CPU and makes the loss NaN on CUDA.
        return_stats: also return `TokenStats`.
        chunk_bytes: memory for logits; chosen by device and shape when None.
        implementation: `auto` takes the fastest that this machine has.

    Returns:
        The loss in fp32 (fp64 for fp64 input): [], or like labels for `none`, zero where ignored.
        Without a supervised token it is 0 with gradients of zeros.

    Raises:
        ValueError, TypeError: an argument that can't be right; the message says which and why.
    """
    a = checked(
        hidden, weight, labels, bias, class_weight, token_weights, ignore_index=ignore_index,
        reduction=reduction, label_smoothing=label_smoothing, z_loss=z_loss, softcap=softcap,
        logit_scale=logit_scale, num_supervised=num_supervised, chunk_bytes=chunk_bytes,
        implementation=implementation,
    )  # fmt: skip
    terms_of = (label_smoothing, z_loss)
    if a.implementation == "reference":
        losses, stats = _reference(a, *terms_of)
    elif reduction == "none":
        losses, stats = _per_token(a, *terms_of, return_stats)
    else:
        loss, *values = linear_cross_entropy_sum(
            a.hidden, a.weight, a.labels, a.bias, a.class_weight, a.token_weights,
            a.ignore_index, label_smoothing, z_loss, a.softcap, a.logit_scale, num_supervised,
            chunk_bytes, a.implementation, *a.gradients, return_stats,
        )[:5]  # fmt: skip
        losses, stats = None, TokenStats(*values)
    if losses is not None:
        loss = losses.view(a.shape) if reduction == "none" else losses.sum()
    if reduction == "mean":
        loss = loss / _denominator(a)
    if not return_stats:
        return loss
    return loss, TokenStats(*(value.detach().view(a.shape) for value in stats))


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = IGNORE,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_entropy: bool = False,
    num_supervised: int | None = None,
    chunk_bytes: int | None = None,
    implementation: Implementation = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probability of each label, differentiable: what preference and RL losses are made of.

    Arguments as in `linear_cross_entropy`.

    Returns:
        logprob [...] fp32 like labels, 0 where ignored; with `return_entropy` also the entropy of
        the predicted distribution in nats, [...] fp32, differentiable too.
    """
    a = checked(
        hidden, weight, labels, bias, None, None, ignore_index=ignore_index, softcap=softcap,
        logit_scale=logit_scale, num_supervised=num_supervised, chunk_bytes=chunk_bytes,
        implementation=implementation,
    )  # fmt: skip
    if a.implementation == "reference":
        _, stats = _reference(a, 0.0, 0.0)
        logprob, entropy = stats.logprob, stats.entropy
    else:
        logprob, _, _, entropy, _ = token_statistics(
            a.hidden, a.weight, a.labels, a.bias, None, a.ignore_index, a.softcap, a.logit_scale,
            num_supervised, chunk_bytes, a.implementation, *a.gradients,
            False, return_entropy, False,
        )  # fmt: skip
    logprob = logprob.view(a.shape)
    return (logprob, entropy.view(a.shape)) if return_entropy else logprob


def _per_token(
    a: Arguments, label_smoothing: float, z_loss: float, return_stats: bool
) -> tuple[Tensor, TokenStats]:
    """Losses [n], zero where ignored, from differentiable statistics."""
    logprob, logsumexp, logit_sum, entropy, correct = token_statistics(
        a.hidden, a.weight, a.labels, a.bias, a.class_weight, a.ignore_index, a.softcap,
        a.logit_scale, a.num_supervised, a.chunk_bytes, a.implementation, *a.gradients,
        label_smoothing > 0, return_stats, return_stats,
    )  # fmt: skip
    terms = Terms(
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        num_classes=a.weight.shape[0],
        labels=a.labels,
        class_weight=a.class_weight,
        token_weight=a.token_weights,
    )
    # of ignored rows every statistic is 0, and so is every term
    losses = terms.losses(logprob, logsumexp, logit_sum)
    return losses, TokenStats(logprob, logsumexp, entropy, correct)


def _reference(a: Arguments, label_smoothing: float, z_loss: float) -> tuple[Tensor, TokenStats]:
    """Losses [n] and statistics by autograd over the logits of supervised rows."""
    check_values(a.hidden, a.weight, a.labels, a.ignore_index, a.class_weight, a.token_weights)
    rows = SupervisedRows(a.labels, a.ignore_index, a.num_supervised)
    labels = rows.take(a.labels)
    logits = reference_logits(rows.take(a.hidden), a.weight, a.bias, a.logit_scale, a.softcap)
    losses = reference_losses(
        logits,
        labels,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        class_weight=a.class_weight,
    )
    if a.token_weights is not None:
        losses = losses * rows.take(a.token_weights)
    log_p = logits.log_softmax(dim=-1)
    # the product after the choice: autograd would multiply the -inf that was not chosen by 0
    p_log_p = log_p.exp() * torch.where(log_p > -torch.inf, log_p, 0.0)
    values = (
        log_p.gather(1, labels[:, None])[:, 0],
        logits.logsumexp(dim=-1),
        -p_log_p.sum(dim=-1),
        logits.argmax(dim=-1) == labels,
    )
    stats = TokenStats(*(rows.put(value) for value in values))
    return rows.checked(rows.put(losses)), stats


def _denominator(a: Arguments) -> Tensor:
    """Sum of the weights of supervised tokens []; 1 where there is none, for a loss of 0."""
    weights = (a.labels != a.ignore_index).to(torch.float32)
    if a.token_weights is not None:
        weights = weights * a.token_weights
    if (of_labels := label_weights(a.class_weight, a.labels)) is not None:
        weights = weights * of_labels
    total = weights.sum()
    return torch.where(total > 0, total, 1.0)
