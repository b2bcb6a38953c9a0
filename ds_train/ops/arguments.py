"""The arguments of the fused loss: one clear message for each that can't be right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ds_train.ops.implementations import IMPLEMENTATIONS

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
_REDUCTIONS = ("sum", "mean", "none")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Checked and flattened: n rows, fp32 for everything but hidden and weight."""

    hidden: Tensor
    """[n, d]"""
    weight: Tensor
    """[v, d], rows contiguous"""
    labels: Tensor
    """[n] int64"""
    bias: Tensor | None
    class_weight: Tensor | None
    token_weights: Tensor | None
    shape: torch.Size
    """of the labels as they were given"""
    ignore_index: int
    softcap: float | None
    logit_scale: float
    num_supervised: int | None
    chunk_bytes: int | None
    implementation: str

    @property
    def gradients(self) -> tuple[bool, bool, bool]:
        """Whether hidden, weight and bias need one."""
        wanted = torch.is_grad_enabled()
        bias = self.bias is not None and self.bias.requires_grad
        return (
            wanted and self.hidden.requires_grad,
            wanted and self.weight.requires_grad,
            (wanted and bias),
        )


def checked(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    token_weights: Tensor | None,
    *,
    ignore_index: int,
    softcap: float | None,
    logit_scale: float,
    num_supervised: int | None,
    chunk_bytes: int | None,
    implementation: str,
    reduction: str = "sum",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Arguments:
    """The arguments, ready for the operators.

    Raises:
        TypeError: a thing of the wrong kind or dtype.
        ValueError: a wrong shape, device or number.
    """
    tensors = {"hidden": hidden, "weight": weight, "labels": labels, "bias": bias,
               "class_weight": class_weight, "token_weights": token_weights}  # fmt: skip
    for name, tensor in tensors.items():
        if tensor is not None or name in ("hidden", "weight", "labels"):
            _check_kind(name, tensor, hidden)
    hidden, weight = _same_dtype(hidden, weight)
    _check_shapes(hidden, weight, labels, bias, class_weight, token_weights)
    _check_numbers(softcap, logit_scale, label_smoothing, z_loss, reduction)
    _check_counts(labels, num_supervised, chunk_bytes, ignore_index)
    if implementation not in IMPLEMENTATIONS:
        _fail(f"implementation {implementation!r}: one of {', '.join(IMPLEMENTATIONS)}")
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    if hidden.dtype == torch.float64 and implementation == "auto":
        implementation = "reference"
    if weight.stride(1) != 1 or weight.stride(0) < weight.shape[1]:  # expanded, say
        weight = weight.contiguous()
    return Arguments(
        hidden=hidden.reshape(-1, hidden.shape[-1]).contiguous(),
        weight=weight,
        labels=labels.reshape(-1).to(torch.int64).contiguous(),
        bias=None if bias is None else bias.to(wide).contiguous(),
        class_weight=None if class_weight is None else class_weight.to(wide).contiguous(),
        token_weights=None if token_weights is None else token_weights.reshape(-1).to(wide),
        shape=labels.shape,
        ignore_index=ignore_index,
        softcap=None if softcap is None else float(softcap),
        logit_scale=float(logit_scale),
        num_supervised=num_supervised,
        chunk_bytes=chunk_bytes,
        implementation=implementation,
    )


def _fail(message: str, kind: type[Exception] = ValueError) -> None:
    raise kind(f"linear_cross_entropy: {message}")


def _check_kind(name: str, tensor: Any, hidden: Tensor) -> None:
    if isinstance(tensor, nn.Module):
        _fail(
            f"{name} is a {type(tensor).__name__}: a tensor is needed; pass its weight", TypeError
        )
    if not isinstance(tensor, Tensor):
        _fail(f"{name} is a {type(tensor).__name__}: a tensor is needed", TypeError)
    if type(tensor).__name__ == "DTensor":
        _fail(f"{name} is a DTensor: a whole tensor is needed; gather it first", TypeError)
    if getattr(tensor, "ds_status", None) is not None and tensor.numel() == 0:
        _fail(
            f"{name} is partitioned by ZeRO-3, and empty here: call through the module that owns "
            "it, or under deepspeed.zero.GatheredParameters"
        )
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        kind = "meta" if tensor.device.type == "meta" else str(tensor.layout)
        _fail(f"{name} is {kind}: a dense tensor with values is needed", TypeError)
    if tensor.device != hidden.device:
        _fail(f"{name} is on {tensor.device}, and hidden on {hidden.device}: move one of them")
    if name == "labels":
        if tensor.dtype not in _INTEGERS:
            _fail(f"labels are {tensor.dtype}: integers are needed, as class indices", TypeError)
    elif tensor.dtype not in _FLOATS:
        _fail(f"{name} is {tensor.dtype}: one of fp32, bf16, fp16 is needed", TypeError)
    if name in ("class_weight", "token_weights") and tensor.requires_grad:
        _fail(f"{name} requires a gradient, and gets none: pass {name}.detach()")


def _same_dtype(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden and weight in one dtype: autocast's where it is on."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        return hidden.to(dtype), weight.to(dtype)
    if hidden.dtype != weight.dtype:
        _fail(
            f"hidden is {hidden.dtype} and weight {weight.dtype}: convert one of them, or call "
            "under torch.autocast",
            TypeError,
        )
    return hidden, weight


def _check_shapes(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    token_weights: Tensor | None,
) -> None:
    if weight.dim() != 2 or weight.shape[0] == 0:
        _fail(f"weight is {_shape(weight)}: [vocabulary, hidden size] is needed, of one class up")
    if hidden.dim() < 2:
        _fail(f"hidden is {_shape(hidden)}: [..., hidden size] of two dimensions or more is needed")
    if hidden.shape[-1] != weight.shape[1] or hidden.shape[-1] == 0:
        _fail(
            f"hidden is {_shape(hidden)} and weight {_shape(weight)}: their last dimensions, the "
            "hidden size, have to be equal and not 0"
        )
    if labels.shape != hidden.shape[:-1]:
        _fail(f"labels are {_shape(labels)} and hidden {_shape(hidden)}: one label a row is needed")
    for name, vector in (("bias", bias), ("class_weight", class_weight)):
        if vector is not None and vector.shape != weight.shape[:1]:
            _fail(f"{name} is {_shape(vector)}: [{weight.shape[0]}] is needed, one a class")
    if token_weights is not None and token_weights.shape != labels.shape:
        _fail(f"token_weights are {_shape(token_weights)} and labels {_shape(labels)}: one a label")


def _check_numbers(
    softcap: float | None,
    logit_scale: float,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
) -> None:
    if reduction not in _REDUCTIONS:
        _fail(f"reduction {reduction!r}: one of {', '.join(_REDUCTIONS)}")
    if not 0 <= label_smoothing <= 1:
        _fail(f"label_smoothing {label_smoothing}: from 0 to 1")
    if not 0 <= z_loss < math.inf:
        _fail(f"z_loss {z_loss}: 0 or more")
    if softcap is not None and not 0 < softcap < math.inf:
        _fail(f"softcap {softcap}: above 0, or None for no cap")
    if not 0 < logit_scale < math.inf:
        _fail(f"logit_scale {logit_scale}: above 0; it is 1/temperature")


def _check_counts(
    labels: Tensor, num_supervised: int | None, chunk_bytes: int | None, ignore_index: int
) -> None:
    for name, value in (("num_supervised", num_supervised), ("chunk_bytes", chunk_bytes)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            _fail(f"{name} {value!r}: an int on the host is needed, or None", TypeError)
    if num_supervised is not None and not 0 <= num_supervised <= labels.numel():
        _fail(f"num_supervised {num_supervised}: from 0 to the {labels.numel()} labels")
    if chunk_bytes is not None and chunk_bytes <= 0:
        _fail(f"chunk_bytes {chunk_bytes}: above 0, or None to have it chosen")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        _fail(f"ignore_index {ignore_index!r}: an int is needed", TypeError)


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"
