"""What the output layer and the loss take: a chunk of logits, and gradients that wait for backward.

The fused loss makes its gradients in the forward pass: of the hidden states, and of the weight
where that trains (in fp32 while several chunks add up). Where it can't run (LoRA on the output
layer under ZeRO-3, DoRA or IA3 there), the logits of all supervised positions stand.

On a CPU slabs of columns stand instead of a chunk of rows: in bf16 with what is packed for the
products, of which the first 64 MiB stay with the process (`csrc/linear_ce_cpu.cpp`,
`LinearRun::allocate`); in fp32 where `loss_chunks.py` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_train.plan.loss_chunks import (
    CPU_LOGITS_BYTES,
    SLAB_BYTES,
    SLAB_PADDING,
    chunk_rows,
    pass_columns,
    pass_rows,
    slab_columns,
)
from ds_train.plan.setting import Setting
from ds_train.plan.trainable import Parameter

_CPU_KEPT_BYTES = 64 * 2**20
_PANEL, _SLAB, _SLABS_IN_GROUP, _GROUPS = 32, 256, 2, 3
"""Tokens, or dimensions, of a panel; columns of a slab; slabs of a group; groups under way."""


@dataclass(frozen=True)
class LossMemory:
    """Bytes of one micro-batch on one rank."""

    chunk: int
    """Logits that stand at once, and what is beside them as long."""
    gradients: int
    """Of hidden states and weight, until the backward pass has passed."""
    stays: int = 0
    """Working memory that is not given back after a call."""


def loss_memory(setting: Setting) -> LossMemory:
    """Upper bound: every token of the row is supervised."""
    w, tokens, kind = setting.width, setting.tokens, setting.config.model.loss_implementation
    vocab, width, trains = _output(setting)
    if kind == "reference" or not _is_fused(setting):
        # logits, these in fp32, their softmax, and the gradient of the logits
        hidden = setting.trainable.shape.hidden
        return LossMemory(tokens * vocab * (2 * w + 8), w * tokens * hidden)
    weight = vocab * width
    gradients = w * tokens * width + (w * weight if trains else 0)
    copy = w * weight if _num_appended(setting) else 0
    if setting.cluster.is_cpu and setting.config.model.dtype == "bf16" and kind in ("auto", "cpu"):
        working = _slabs(tokens, vocab, width, trains)
        stays = min(working, _CPU_KEPT_BYTES)
        return LossMemory(copy + working - stays, gradients, stays)
    return LossMemory(copy + _chunk(setting), gradients)


def _chunk(setting: Setting) -> int:
    """Logits that stand at once, and what the loss needs beside them."""
    w, tokens, kind = setting.width, setting.tokens, setting.config.model.loss_implementation
    vocab, width, trains = _output(setting)
    if (columns := columns_at_once(setting)) is not None:
        if trains:  # logits wait in the weight's gradient
            return max(SLAB_BYTES, w * tokens * (columns + SLAB_PADDING))
        return w * pass_rows(tokens) * (columns + SLAB_PADDING + width)  # with labels' weights
    beside = 12 if kind == "chunked" else 0
    device = "cpu" if setting.cluster.is_cpu else "cuda"
    rows = chunk_rows(tokens, vocab * (w + beside), None, device, trains)
    chunk = rows * vocab * (w + beside)
    if trains and rows < tokens and w == 2:
        chunk += 4 * vocab * width  # the sum over chunks is fp32
    return chunk


def columns_at_once(setting: Setting) -> int | None:
    """Of a slab, where the loss goes through the output layer in slabs: fp32 on a CPU, where the
    fused loss has its kernels; else None."""
    kind, (vocab, width, trains) = setting.config.model.loss_implementation, _output(setting)
    if not (setting.cluster.is_cpu and setting.width == 4 and kind in ("auto", "cpu")):
        return None
    if not _is_fused(setting):
        return None
    if trains:
        return slab_columns(setting.tokens, width, vocab, setting.width, None)
    return pass_columns(setting.tokens, vocab, setting.width, None)


def _output(setting: Setting) -> tuple[int, int, bool]:
    """Sizes of the weight that the loss gets, [vocab, width], and whether it makes its gradient."""
    shape, appended = setting.trainable.shape, _num_appended(setting)
    trains = setting.trainable.trains_output or appended > 0
    return shape.vocab, shape.hidden + appended, trains


def _num_appended(setting: Setting) -> int:
    """Columns that LoRA appends to the output layer's weight for each call (`model/head.py`)."""
    return min((min(one.shape) for one in _output_adapters(setting)), default=0)


def _output_adapters(setting: Setting) -> list[Parameter]:
    output = setting.trainable.shape.output
    return [
        one
        for one in setting.trainable.trained
        if output is not None and one.kind == "adapter" and one.module.name == output.name
    ]


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
    if not _output_adapters(setting):
        return True
    adapter = setting.config.adapter
    return setting.stage < 3 and adapter.method != "ia3" and not adapter.use_dora
