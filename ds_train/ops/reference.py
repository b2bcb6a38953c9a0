"""The truth about LM head + cross-entropy, in a few lines of torch that anybody can check.

    z = scale * (hidden weight^T + bias);  z <- cap * tanh(z / cap) if there is a cap
    loss = logsumexp(z) - z[label]

Logits are computed for supervised positions only, and the losses in fp32. Every faster
implementation is tested against this one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""Label of a position that nothing is learned from."""


def cap_logits(logits: Tensor, softcap: float | None, scale: float = 1.0) -> Tensor:
    """Scaled and soft-capped logits, any shape."""
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of losses and number of right argmaxes over supervised positions.

    Args:
        logits: [n, v], already capped and scaled.
        labels: [n], int64, every one of them supervised.

    Returns:
        loss_sum [] in fp32 (fp64 for fp64 logits), num_correct [] int64.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    loss_sum = F.cross_entropy(logits, labels, reduction="sum")
    return loss_sum, (logits.detach().argmax(dim=-1) == labels).sum()


def linear_cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """LM head + cross-entropy, summed over the supervised positions.

    Args:
        hidden: [..., d]; weight: [v, d]; bias: [v]; labels: [...] with IGNORE where masked.

    Returns:
        loss_sum [] in fp32, num_correct [] int64. With no supervised position the sum is 0 and
        still has a gradient (of zeros), as ZeRO needs every rank to run the same backward.
    """
    supervised = labels != IGNORE
    logits = F.linear(hidden[supervised], weight, bias)
    return cross_entropy_sum(cap_logits(logits, softcap, scale), labels[supervised])
