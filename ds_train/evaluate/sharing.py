"""Whether a model computes a common beginning once, with branches that do not see each other.

A branching row needs attention that takes any mask, and nothing that carries text from a token to
the next by another way. What is known to be otherwise is named; whatever else goes wrong is found
by trying it on the model itself, with its weights, before the first request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ds_train.errors import reason
from ds_train.evaluate.prefix_rows import NOTHING_SHARED, Sharing
from ds_train.evaluate.requests import Request, ScoreBatch, plan_batches

MASKS = ("sdpa", "eager")
"""Attention implementations that take a mask of any form."""

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.25
"""Nats a token. A wrong position or a leak moves random text by far more."""

_TRIED_DEPTH = 32

Losses = Callable[[ScoreBatch], tuple[Tensor, Tensor]]


def find_sharing(model: Any, losses: Losses, max_length: int) -> tuple[Sharing, str]:
    """How requests may share what they have in common, and a line that says so.

    A collective call where the model is sharded.

    Args:
        model: Hugging Face or PEFT model; losses: makes the losses of a batch's labels with it.
        max_length: tokens that a request may have.
    """
    text = model.config.get_text_config()
    window = _attention_window(text)
    why = _obstacle(model, text, window)
    if why is None:
        why = _try(losses, text.vocab_size, _dtype(model))
    if why is not None:
        return NOTHING_SHARED, f"every request is computed whole: {why}"
    depth = min(max_length, window or max_length)
    longer = "" if depth == max_length else f", up to the attention window of {depth:,} tokens"
    sharing = Sharing(max_depth=depth, token_cost=_token_cost(text))
    return sharing, f"what requests begin with in common is computed once{longer} (tried)"


def _obstacle(model: Any, text: Any, window: int | None) -> str | None:
    """What is known to forbid it."""
    attention = text._attn_implementation
    if attention not in MASKS:
        return f"attention {attention!r} takes no mask of branches"
    peft = getattr(model, "peft_config", {}).values()
    if any(getattr(one, "num_virtual_tokens", None) for one in peft):
        return "virtual tokens stand before every row"
    kinds = set(getattr(text, "layer_types", None) or [])
    if others := sorted(kinds - {"full_attention", "sliding_attention"}):
        return f"it has layers of {', '.join(others)}"
    if "sliding_attention" in kinds and window is None:
        return "it has attention windows of unknown size"
    if window is not None and window < _TRIED_DEPTH:
        return f"its attention windows have {window} tokens only"
    return None


def _token_cost(text: Any) -> float:
    """Matrices of a layer, 24 d^2 operations, against attending to one token: 4 d, and the softmax
    of each head, which counts for most where heads are small."""
    width, heads = text.hidden_size, text.num_attention_heads
    return 24 * width**2 / (4 * width + 32 * heads)


def _attention_window(text: Any) -> int | None:
    """Tokens that every layer sees at least; None without a limit."""
    if getattr(text, "use_sliding_window", True) is False:
        return None
    window = getattr(text, "sliding_window", None)
    return int(window) if window else None


def _dtype(model: Any) -> torch.dtype:
    return next(model.parameters()).dtype


@torch.no_grad()
def _try(losses: Losses, vocab_size: int, dtype: torch.dtype) -> str | None:
    """What goes wrong when it is tried; None where nothing does.

    The second candidate's losses must not move when the first one is another, and must be what
    they are without sharing, both to rounding (experts round by what else they are given).
    """
    ids = np.random.default_rng(0).integers(3, vocab_size, 30).tolist()
    context, one, other, second = ids[:12], ids[12:18], ids[18:24], ids[24:]
    shared = Sharing(max_depth=_TRIED_DEPTH, token_cost=1e9)
    try:
        values = [_values(losses, [context, first, second], shared) for first in (one, other)]
        alone = _values(losses, [context, one, second], NOTHING_SHARED)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        return f"the model does not take it ({reason(error)})"
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    leak = float((values[0][1] - values[1][1]).abs().max())
    if not leak <= tolerance:  # nor NaN
        return f"its candidates see each other (a token's loss moves by {leak:.2g})"
    difference = float((values[0] - alone).abs().max())
    if not difference <= tolerance:
        return f"a token's loss differs by {difference:.2g} then"
    return None


def _values(losses: Losses, texts: list[list[int]], sharing: Sharing) -> Tensor:
    """Losses [2, 6] of two candidates of a context, on the CPU."""
    context, *candidates = texts
    requests = [Request(context, candidate) for candidate in candidates]
    plan = plan_batches(requests, max_length=_TRIED_DEPTH, batch_tokens=1024, sharing=sharing)
    result = torch.zeros(2, 6)
    for index in range(len(plan)):
        batch = plan.batch(index)
        found = losses(batch)[0].float().cpu()
        for owner in np.unique(batch.owners):
            result[owner] = found[torch.from_numpy(batch.owners == owner)]
    return result
