"""From the statistics of a token to its loss, and back: every feature of the loss lives here.

    loss_i = t_i ( (1 - s) c_y (-logprob) + s/v (sum(c) logsumexp - logit_sum) + zeta logsumexp^2 )

with token weights t, class weights c and label smoothing s as in torch's cross_entropy, and the
z-loss factor zeta (PaLM, Chowdhery et al. 2022, section 5). All of it on vectors of n tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ds_train.ops.problem import Upstream


def label_weights(class_weight: Tensor | None, labels: Tensor) -> Tensor | None:
    """Class weight of each label [n]; that of some class where the label is none.

    Of an ignored row nothing is counted, and of one whose class does not exist the statistics are
    NaN already.
    """
    if class_weight is None:
        return None
    return class_weight[labels.clamp(0, len(class_weight) - 1)]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The settings of the loss, for n supervised tokens."""

    label_smoothing: float
    z_loss: float
    num_classes: int
    labels: Tensor
    """[n] int64"""
    class_weight: Tensor | None
    """[v], None for ones"""
    token_weight: Tensor | None
    """[n], None for ones"""

    @property
    def needs_logit_sum(self) -> bool:
        """Whether `losses` needs the sum over the classes' logits."""
        return self.label_smoothing > 0

    @property
    def _class_weight_sum(self) -> Tensor | int:
        return self.num_classes if self.class_weight is None else self.class_weight.sum()

    def losses(self, logprob: Tensor, logsumexp: Tensor, logit_sum: Tensor | None) -> Tensor:
        """Loss of each token, [n]."""
        of_labels = label_weights(self.class_weight, self.labels)
        weighted = logprob if of_labels is None else of_labels * logprob
        loss = -(1 - self.label_smoothing) * weighted
        if self.needs_logit_sum:
            assert logit_sum is not None
            per_class = self.label_smoothing / self.num_classes
            loss = loss + per_class * (self._class_weight_sum * logsumexp - logit_sum)
        if self.z_loss > 0:
            loss = loss + self.z_loss * logsumexp.square()
        return loss if self.token_weight is None else loss * self.token_weight

    def upstream(self, like: Tensor) -> Upstream:
        """Gradient of the sum of `losses` with respect to the statistics; [n] like `like`."""
        weight = torch.ones_like(like) if self.token_weight is None else self.token_weight
        of_labels = label_weights(self.class_weight, self.labels)
        target = weight if of_labels is None else weight * of_labels
        per_class = self.label_smoothing / self.num_classes
        return Upstream(
            logprob=-(1 - self.label_smoothing) * target,
            logsumexp=weight * (per_class * self._class_weight_sum)
            if self.needs_logit_sum
            else None,
            logsumexp_slope=2 * self.z_loss * weight if self.z_loss > 0 else None,
            logit_sum=-per_class * weight if self.needs_logit_sum else None,
        )
