"""The C structs of csrc/rows.h in Python, filled from tensors that were checked.

A wrong dtype, shape, device or stride is an error that names the tensor, never a pointer into
nowhere.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ds_train.ops.problem import Problem, Result, Upstream
from ds_train.plan.loss_chunks import ROW_BLOCK

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""DsTrainDtype of rows.h."""
ROW_STATE = 16
"""DS_TRAIN_ROW_STATE of rows.h."""


class LogitRows(ctypes.Structure):
    """`LogitRows` of csrc/rows.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "slabs")),
        *((name, ctypes.c_void_p) for name in ("labels", "bias", "class_weight")),
        ("grad_logprob", ctypes.c_void_p),
        ("grad_logsumexp", ctypes.c_void_p),
        ("grad_logsumexp_slope", ctypes.c_void_p),
        ("grad_logit_sum", ctypes.c_void_p),
        ("grad_entropy", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("logprob", "logsumexp", "logit_sum", "entropy")),
        ("correct", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "vocab", "stride", "slab_columns")),
        ("logit_scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("dtype", ctypes.c_int32),
        ("write_gradient", ctypes.c_int32),
    ]


class SlabRows(ctypes.Structure):
    """`SlabRows` of csrc/rows.h."""

    _fields_ = [
        ("rows", LogitRows),
        *((name, ctypes.c_void_p) for name in ("state", "factor", "target")),
        ("first", ctypes.c_int64),
    ]


class LinearCE(ctypes.Structure):
    """`LinearCE` of csrc/rows.h."""

    _fields_ = [
        ("rows", LogitRows),
        ("hidden", ctypes.c_void_p),
        ("hidden_stride", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("weight_stride", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("grad_hidden", ctypes.c_void_p),
        ("grad_weight", ctypes.c_void_p),
        ("grad_weight_dtype", ctypes.c_int32),
        ("grad_bias", ctypes.c_void_p),
        ("logits_bytes", ctypes.c_int64),
    ]


def logit_rows(
    logits: Tensor, rows: slice, problem: Problem, upstream: Upstream | None, result: Result
) -> LogitRows:
    """The struct for one chunk; it holds addresses, so the tensors must outlive the call."""
    vocab = problem.weight.shape[0]
    start, stop, step = rows.indices(problem.labels.shape[0])
    if step != 1:
        raise ValueError(f"rows: step {step}; must be 1")
    address = matrix(logits, "logits", (stop - start, vocab), logits)
    call = row_arguments(slice(start, stop), problem, upstream, result, logits.device)
    call.logits, call.stride = address, logits.stride(0)
    call.dtype = DTYPES[logits.dtype]
    call.write_gradient = int(upstream is not None)
    return call


def slab_rows(
    slabs: list[Tensor], problem: Problem, upstream: Upstream | None, result: Result
) -> LogitRows:
    """The struct for all rows, whose logits lie in slabs [n, c], the last of which may be narrower.

    It holds addresses, so the tensors must outlive the call.
    """
    n, vocab = problem.labels.shape[0], problem.weight.shape[0]
    columns, stride = slabs[0].shape[1], slabs[0].stride(0)
    addresses = []
    for number, slab in enumerate(slabs):
        width = min(columns, vocab - number * columns)
        addresses.append(matrix(slab, f"slab {number}", (n, width), problem.hidden))
        if slab.stride(0) != stride:
            raise ValueError(f"slab {number}: {_described(slab)}; rows must lie {stride} apart")
    if len(slabs) != -(-vocab // columns) or columns % ROW_BLOCK != 0:
        raise ValueError(
            f"slabs: {len(slabs)} of {columns} columns; must cover the {vocab} columns of the "
            f"vocabulary, in multiples of {ROW_BLOCK}"
        )
    call = row_arguments(slice(0, n), problem, upstream, result, problem.hidden.device)
    call.addresses = (ctypes.c_void_p * len(slabs))(*addresses)  # lives as long as the struct
    call.slabs = ctypes.cast(call.addresses, ctypes.c_void_p)
    call.slab_columns, call.stride = columns, stride
    call.dtype = DTYPES[problem.hidden.dtype]
    call.write_gradient = int(upstream is not None)
    return call


def row_arguments(
    rows: slice,
    problem: Problem,
    upstream: Upstream | None,
    result: Result,
    device: torch.device,
) -> LogitRows:
    n, vocab = problem.labels.shape[0], problem.weight.shape[0]

    def of_rows(tensor: Tensor | None, name: str, dtype: torch.dtype) -> int | None:
        _vector(tensor, name, n, dtype, device)
        return None if tensor is None else tensor[rows].data_ptr()

    def of_vocab(tensor: Tensor | None, name: str) -> int | None:
        return _vector(tensor, name, vocab, torch.float32, device)

    fp32 = torch.float32
    gradients = {} if upstream is None else vars(upstream)
    return LogitRows(
        labels=of_rows(problem.labels, "labels", torch.int64),
        bias=of_vocab(problem.bias, "bias"),
        class_weight=of_vocab(problem.class_weight, "class_weight"),
        **{f"grad_{name}": of_rows(one, f"grad {name}", fp32) for name, one in gradients.items()},
        logprob=of_rows(result.logprob, "logprob", fp32),
        logsumexp=of_rows(result.logsumexp, "logsumexp", fp32),
        logit_sum=of_rows(result.logit_sum, "logit_sum", fp32),
        entropy=of_rows(result.entropy, "entropy", fp32),
        correct=of_rows(result.correct, "correct", torch.bool),
        rows=rows.stop - rows.start,
        vocab=vocab,
        logit_scale=problem.logit_scale,
        softcap=problem.softcap or 0.0,
    )


def _vector(
    tensor: Tensor | None, name: str, length: int, dtype: torch.dtype, device: torch.device
) -> int | None:
    if tensor is None:
        return None
    if tensor.shape != (length,) or tensor.dtype != dtype:
        raise ValueError(f"{name}: {_described(tensor)}; must be {dtype} [{length}]")
    if tensor.device != device or not tensor.is_contiguous():
        raise ValueError(f"{name}: {_described(tensor)}; must be contiguous on {device}")
    return tensor.data_ptr()


def matrix(tensor: Tensor, name: str, shape: tuple[int, int], like: Tensor) -> int:
    """Address of a row-major matrix, whose rows may lie apart."""
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name}: {_described(tensor)}; must be one of {[*DTYPES]}")
    if tensor.shape != shape or tensor.dtype != like.dtype or tensor.device != like.device:
        wanted = f"{like.dtype} {[*shape]} on {like.device}"
        raise ValueError(f"{name}: {_described(tensor)}; must be {wanted}")
    rows, columns = shape
    if (columns > 1 and tensor.stride(1) != 1) or (rows > 1 and tensor.stride(0) < columns):
        raise ValueError(f"{name}: {_described(tensor)}; rows must lie apart, elements together")
    return tensor.data_ptr()


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {[*tensor.shape]}, strides {tensor.stride()}, on {tensor.device}"


def layout_fault(struct: type[ctypes.Structure], function: Any) -> str | None:
    """What differs between a struct here and in a library, whose `function` tells its layout."""
    function.restype = ctypes.POINTER(ctypes.c_int64)
    members = [name for name, *_ in struct._fields_]
    here = [*(getattr(struct, name).offset for name in members), ctypes.sizeof(struct)]
    there = function()[: len(here)]
    return None if here == there else f"{struct.__name__} is {there} there and {here} here"
