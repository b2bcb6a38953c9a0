"""Operators of the loss: LM head + cross-entropy without the logits."""

from ds_train.ops.linear_ce import TokenStats, linear_cross_entropy, linear_logprobs

__all__ = ["TokenStats", "linear_cross_entropy", "linear_logprobs"]
