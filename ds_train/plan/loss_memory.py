"""What the output layer and the loss take: a chunk of logits, and gradients that wait for backward.

The fused loss makes its gradients in the forward pass: of the hidden states, and of the weight
where that trains (in fp32 while several chunks add up). Where it can't run (LoRA on the output
layer under ZeRO-3, DoRA there, a quantised layer), the logits of all supervised positions stand.

In bf16 on a CPU no chunk stands: slabs of columns do, with what is packed for the products, and
the first 64 MiB of it stay with the process (`csrc/linear_ce_cpu.cpp`, `LinearRun::allocate`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_train.plan.loss_chunks import (
    CPU_LOGITS_BYTES,
    PASS_ROWS,
    SLAB_BYTES,
    SLAB_PADDING,
    chunk_rows,
    pass_columns,
    slab_columns,
)
from ds_train.plan.setting import Setting

_CPU_KEPT_BYTES = 64 * 2**20
_PANEL, _SLAB, _SLABS_IN_GROUP, _GROUPS = 32, 256, 2, 3
"""Tokens, or dimensions, of a panel; columns of a slab; slabs of a group; groups under way."""


@dataclass(frozen=True)
class LossMemory:
    """Bytes of one micro-batch on one rank."""

    chunk: int
    """Logits that stand at once."""
    gradients: int
    """Of hidden states and weight, until the backward pass has passed."""
    stays: int = 0
    """Working memory that is not given back after a call."""


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
    if device == "cpu" and setting.config.model.dtype == "bf16" and kind in ("auto", "cpu"):
        working = _slabs(tokens, vocab, hidden, trains)
        stays = min(working, _CPU_KEPT_BYTES)
        return LossMemory(working - stays, gradients, stays)
    if (columns := columns_at_once(setting)) is not None:
        if trains:  # logits wait in the weight's gradient
            return LossMemory(max(SLAB_BYTES, w * tokens * (columns + SLAB_PADDING)), gradients)
        slab = w * min(tokens, PASS_ROWS) * (columns + SLAB_PADDING)
        return LossMemory(slab + w * tokens * hidden, gradients)  # with the labels' weights
    beside = 12 if kind == "chunked" else 0
    rows = chunk_rows(tokens, vocab * (w + beside), None, device, trains)
    chunk = rows * vocab * (w + beside)
    if trains and rows < tokens and w == 2:
        chunk += 4 * weight  # the sum over chunks is fp32
    return LossMemory(chunk, gradients)


def columns_at_once(setting: Setting) -> int | None:
    """Of a slab, where the loss goes through the output layer in slabs: fp32 on a CPU, where the
    fused loss has its kernels; else None."""
    shape, kind = setting.trainable.shape, setting.config.model.loss_implementation
    if not (setting.cluster.is_cpu and setting.width == 4 and kind in ("auto", "cpu")):
        return None
    if not _is_fused(setting):
        return None
    if setting.trainable.trains_output:
        return slab_columns(setting.tokens, shape.hidden, shape.vocab, setting.width, None)
    return pass_columns(setting.tokens, shape.vocab, setting.width, None)


def _slabs(tokens: int, vocab: int, hidden: int, trains: bool) -> int:
    """Working memory of the CPU's own products in bf16, on one thread."""
    n, d = (-(-one // _PANEL) * _PANEL for one in (tokens, hidden))
    slabs = -(-vocab // _SLAB)
    group = _SLAB * min(slabs, _SLABS_IN_GROUP)
    packed = 2 * n * d + _GROUPS * 2 * group * (d + n)  # hidden states; weights, exponentials
    sums = 4 * n * d + 4 * n * 5 * _GROUPS * _SLABS_IN_GROUP  # of grad_hidden; of each token
    of_thread = 4 * 2 * _SLAB * _PANEL + 2 * _SLAB * d
    total = packed + sums + of_thread
    if trains:
        in_gradient = min(n, d)  # exponentials that wait in the weight's gradient itself
        waiting = min(CPU_LOGITS_BYTES, 2 * slabs * _SLAB * (n - in_gradient))
        total += waiting + 2 * n * d + 4 * slabs * n + 2 * _SLAB * n
    return total


def _is_fused(setting: Setting) -> bool:
    output = setting.trainable.shape.output
    adapted = output is not None and any(
        one.kind == "adapter" and one.module.name == output.name
        for one in setting.trainable.trained
    )
    if not adapted:
        return True
    return setting.stage < 3 and not setting.config.adapter.use_dora
