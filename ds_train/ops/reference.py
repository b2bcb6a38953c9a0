"""The truth about LM head + cross-entropy, in a few lines of torch that anybody can check.

    z = scale * (hidden weight^T + bias);  z <- cap * tanh(z / cap) if there is a cap
    loss = logsumexp(z) - z[label]

Logits are computed for supervised positions only, and the losses in fp32, or in fp64 for fp64
input. Every faster implementation is tested against this one; its gradients are autograd's.
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


def reference_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Logits [n, v] in fp32 (fp64); the GEMM is made in the dtype of hidden [n, d]."""
    logits = F.linear(hidden, weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return cap_logits(logits if bias is None else logits + bias, softcap, logit_scale)


def reference_losses(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Loss of each row [n] from logits [n, v], every label supervised."""
    loss = F.cross_entropy(
        logits, labels, class_weight, reduction="none", label_smoothing=label_smoothing
    )
    return loss + z_loss * logits.logsumexp(dim=-1).square() if z_loss else loss
