"""What the output layer and the loss take: a chunk of logits, and gradients that wait for backward.

The fused loss makes its gradients in the forward pass: of the hidden states, and of the weight
where that trains (in fp32 while several chunks add up). Where it can't run (LoRA on the output
layer under ZeRO-3, DoRA there, a quantised layer), the logits of all supervised positions stand.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_train.plan.loss_chunks import (
    CPU_LOGITS_BYTES,
    SLAB_BYTES,
    SLAB_PADDING,
    chunk_rows,
    slab_columns,
)
from ds_train.plan.setting import Setting


@dataclass(frozen=True)
class LossMemory:
    """Bytes of one micro-batch on one rank."""

    chunk: int
    """Logits that stand at once."""
    gradients: int
    """Of hidden states and weight, until the backward pass has passed."""


def loss_memory(setting: Setting) -> LossMemory:
    """Upper bound: every token of the row is supervised."""
    shape, w = setting.trainable.shape, setting.width
    tokens, vocab, hidden = setting.tokens, shape.vocab, shape.hidden
    trains = setting.trainable.trains_output
    kind = setting.config.model.loss_implementation
    if kind == "reference" or not _is_fused(setting):
        # logits, these in fp32, their softmax, and the gradient of the logits
        return LossMemory(tokens * vocab * (2 * w + 8), w * tokens * hidden)
    weight = vocab * hidden
    gradients = w * tokens * hidden + (w * weight if trains else 0)
    device = "cpu" if setting.cluster.is_cpu else "cuda"
    if device == "cpu" and w == 2 and kind in ("auto", "cpu"):
        return LossMemory(min(CPU_LOGITS_BYTES, 4 * tokens * vocab), gradients)
    if device == "cpu" and w == 4 and trains and kind in ("auto", "cpu"):
        columns = slab_columns(tokens, hidden, vocab, w, None)
        if columns is not None:  # the logits wait in the weight's gradient
            slab = w * tokens * (columns + SLAB_PADDING)
            return LossMemory(max(SLAB_BYTES, slab), gradients)
    beside = 12 if kind == "chunked" else 0
    rows = chunk_rows(tokens, vocab * (w + beside), None, device, trains)
    chunk = rows * vocab * (w + beside)
    if trains and rows < tokens and w == 2:
        chunk += 4 * weight  # the sum over chunks is fp32
    return LossMemory(chunk, gradients)


def _is_fused(setting: Setting) -> bool:
    output = setting.trainable.shape.output
    adapted = output is not None and any(
        one.kind == "adapter" and one.module.name == output.name
        for one in setting.trainable.trained
    )
    if not adapted:
        return True
    return setting.stage < 3 and not setting.config.adapter.use_dora
