"""The three losses of T-Few over the candidate answers of labelled examples.

With the right answer y of T tokens and wrong answers y' of T' tokens each, of one example x::

    language modelling   - 1/T sum_t log p(y_t)                         the right one likely,
    unlikelihood         - sum_y' sum_t log(1 - p(y'_t)) / sum_y' T'    the wrong ones not,
    length normalised    - log( exp b(y) / sum_z exp b(z) )             and likelier than they are

with b(z) = 1/T sum_t log p(z_t), z being any candidate, and p given x and the tokens before (Liu et
al. 2022, arXiv 2205.05638, equations 1 to 3).

Every candidate is a line of a micro-batch. All that is needed are the log-probabilities of its
tokens, which `ds_train.ops` makes without logits; T counts every supervised token, so EOS too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Which candidate each line of a micro-batch is; c lines of n examples."""

    example: Tensor
    """int64 [c]: number of the example in the micro-batch, 0 .. n - 1; -1 of a line of padding."""
    gold: Tensor
    """bool [c]: the right answer; exactly one line of each example."""
    num_examples: int
    """n; 0 where a rank has nothing left in a step."""

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Candidates:
        """With each tensor changed, e.g. moved to a device."""
        return Candidates(change(self.example), change(self.gold), self.num_examples)


class ChoiceLosses(NamedTuple):
    """Numbers of each example [n], differentiable but for the last."""

    language_modelling: Tensor
    """Mean over the tokens of the right answer."""
    language_modelling_sum: Tensor
    """Sum over them."""
    unlikelihood: Tensor
    """0 where there is no wrong answer."""
    length_normalised: Tensor
    """0 where there is no wrong answer."""
    right: Tensor
    """bool: no wrong answer has a higher mean log-probability per token, nor an earlier line's an
    equal one."""


def choice_losses(logprobs: Tensor, supervised: Tensor, candidates: Candidates) -> ChoiceLosses:
    """The losses of each example of a micro-batch.

    Args:
        logprobs: [c, t] log-probability of each label; of positions that are not supervised it may
            be anything finite.
        supervised: [c, t] bool, where a label is; such a position contributes, any other is 0.

    Returns:
        Tensors of n examples in the dtype of `logprobs`, n = 0 included: their sum is then 0, with
        gradients of zeros.
    """
    logprobs = torch.where(supervised, logprobs, 0.0)
    num_tokens = supervised.sum(dim=1)
    line_sum = logprobs.sum(dim=1)
    beta = line_sum / num_tokens.clamp(min=1)
    unlikely = torch.where(supervised, -log1mexp(logprobs), 0.0).sum(dim=1)

    numbers = torch.arange(candidates.num_examples, device=logprobs.device)
    mine = candidates.example == numbers[:, None]  # [n, c]
    gold, wrong = mine & candidates.gold, mine & ~candidates.gold
    num_wrong = torch.where(wrong, num_tokens, 0).sum(dim=1)
    of_gold = _sum_over(gold, beta)
    # an example of padding alone can't be, so no row is -inf throughout
    among = torch.where(mine, beta, -torch.inf)
    return ChoiceLosses(
        language_modelling=-of_gold,
        language_modelling_sum=-_sum_over(gold, line_sum),
        unlikelihood=_sum_over(wrong, unlikely) / num_wrong.clamp(min=1),
        length_normalised=among.logsumexp(dim=1) - of_gold,
        right=_argmax_is_gold(among, gold),
    )


def _sum_over(members: Tensor, values: Tensor) -> Tensor:
    """Sums [n] of the values [c] of each example's lines [n, c]."""
    return torch.where(members, values, 0.0).sum(dim=1)


def _argmax_is_gold(among: Tensor, gold: Tensor) -> Tensor:
    """bool [n]: the first highest of each row [n, c] is a gold one."""
    if among.shape[0] == 0:
        return gold.any(dim=1)
    return gold.gather(1, among.detach().argmax(dim=1, keepdim=True))[:, 0]


def log1mexp(logprob: Tensor) -> Tensor:
    """log(1 - exp(logprob)) of log-probabilities (0 or less), exact to rounding; any shape.

    Two forms, each where it loses no digits (Maechler 2012, "Accurately computing
    log(1 - exp(-|a|))", equation 7). Within some rounding errors of 0 the log-probability no longer
    says how near p is to 1; from there on the tangent goes on, so that value and gradient stay
    finite (the label's logit gets the derivative times 1 - p, which is p).
    """
    nearest = -8 * torch.finfo(logprob.dtype).eps
    inside = logprob.clamp(max=nearest)
    small = inside > -math.log(2)  # p over 1/2
    # each form only sees what it is good for: the other's NaN would get into the gradient
    high = torch.log(-torch.expm1(torch.where(small, inside, -1.0)))
    low = torch.log1p(-torch.exp(torch.where(small, -1.0, inside)))
    beyond = torch.where(logprob > nearest, logprob - nearest, 0.0)
    return torch.where(small, high, low) - beyond / math.expm1(-nearest)
