"""The compiled kernels of csrc/, called through plain C structs; loaded once, at the first use.

The calls let other Python threads run. What they compute is in `problem.py`.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ds_train.errors import BuildError, reason
from ds_train.ops.build import library
from ds_train.ops.problem import Problem, Result, Upstream, Wanted, empty_result
from ds_train.ops.structs import (
    DTYPES,
    ROW_STATE,
    LinearCE,
    LogitRows,
    SlabRows,
    layout_fault,
    logit_rows,
    matrix,
    row_arguments,
    slab_rows,
)
from ds_train.ops.toolchain import Kind, local_arch
from ds_train.plan.loss_chunks import CPU_LOGITS_BYTES

_lock = threading.Lock()
_loaded: dict[tuple[Kind, str | None], ctypes.CDLL | BuildError] = {}


def available(kind: str) -> str | None:
    """None if the kernels ("cpu", "cuda") can be called here, else why not, in one line.

    Compiles them when nobody has done so yet.
    """
    arch = local_arch() if kind == "cuda" else None
    if kind == "cuda" and arch is None:
        return "cuda kernels: no CUDA device here"
    try:
        load(cast(Kind, kind), arch)
    except BuildError as error:
        return str(error)
    return None


def load(kind: Kind, arch: str | None = None) -> ctypes.CDLL:
    """The library, its functions typed. Raises BuildError, the same again at every call."""
    key = (kind, arch)
    with _lock:
        if key not in _loaded:
            try:
                kernels = open_library(kind, library(kind, arch))
                if kind == "cuda":
                    check_device(kernels)
                _loaded[key] = kernels
            except BuildError as error:
                _loaded[key] = error
        found = _loaded[key]
    if isinstance(found, BuildError):
        raise found
    return found


def cpu_rows(
    logits: Tensor,
    rows: slice,
    problem: Problem,
    upstream: Upstream | None,
    wanted: Wanted,
    result: Result,
) -> None:
    """A `RowKernel` (problem.py) on the CPU: logits [c, v] in fp32, bf16 or fp16."""
    if logits.device.type != "cpu":
        raise ValueError(f"cpu_rows: logits are on {logits.device}; must be on the CPU")
    call = logit_rows(logits, rows, problem, upstream, result)
    _check(load("cpu").ds_train_rows_cpu(ctypes.byref(call)), "ds_train_rows_cpu")


def cpu_slabs(
    slabs: list[Tensor], problem: Problem, upstream: Upstream | None, result: Result
) -> None:
    """What `cpu_rows` does, on all rows at once, their logits in slabs of columns [n, c]."""
    call = slab_rows(slabs, problem, upstream, result)
    _check(load("cpu").ds_train_rows_cpu(ctypes.byref(call)), "ds_train_rows_cpu")


class CpuSlabs:
    """`SlabRows` of csrc/rows.h: some rows of logits in fp32, of which slabs of columns come by."""

    def __init__(
        self, rows: slice, problem: Problem, upstream: Upstream | None, result: Result
    ) -> None:
        self._rows, self._problem, self._upstream, self._result = rows, problem, upstream, result
        count, hidden = rows.stop - rows.start, problem.hidden  # fp32, whatever torch's default is
        self._state = hidden.new_empty(count, ROW_STATE)
        self.factor = hidden.new_empty(count)
        """[c] What the sum over the slabs before is to be multiplied by."""
        self.target = hidden.new_empty(count)
        """[c] At the end: what the label's weight is to be multiplied by."""

    def add(self, slab: Tensor, problem: Problem, first: int) -> None:
        """Logits [c, columns] become what their weights are to be multiplied by.

        `problem` has these columns of the vocabulary only, which begin with `first`.
        """
        call = logit_rows(slab, self._rows, problem, self._upstream, self._result)
        self._call("ds_train_slab_cpu", call, first)

    def end(self) -> None:
        """The statistics, written to the result."""
        device = self._problem.hidden.device
        call = row_arguments(self._rows, self._problem, self._upstream, self._result, device)
        call.write_gradient = int(self._upstream is not None)
        self._call("ds_train_slabs_end_cpu", call, 0)

    def _call(self, function: str, rows: LogitRows, first: int) -> None:
        state, factor, target = (one.data_ptr() for one in (self._state, self.factor, self.target))
        call = SlabRows(rows=rows, state=state, factor=factor, target=target, first=first)
        _check(getattr(load("cpu"), function)(ctypes.byref(call)), function)


def cuda_rows(
    logits: Tensor,
    rows: slice,
    problem: Problem,
    upstream: Upstream | None,
    wanted: Wanted,
    result: Result,
) -> None:
    """A `RowKernel` (problem.py) on a GPU, on torch's current stream, without a synchronisation."""
    device = logits.device
    if device.type != "cuda":
        raise ValueError(f"cuda_rows: logits are on {device}; must be on a GPU")
    call = logit_rows(logits, rows, problem, upstream, result)
    major, minor = torch.cuda.get_device_capability(device)
    kernels = load("cuda", f"sm_{major}{minor}")
    stream = torch.cuda.current_stream(device).cuda_stream
    code = kernels.ds_train_rows_cuda(ctypes.byref(call), device.index, stream)
    if code != 0:
        name = kernels.ds_train_cuda_error(code).decode()
        raise RuntimeError(f"ds_train_rows_cuda: {name} (cudaError {code})")


def describe(kind: str, dtype: torch.dtype) -> str:
    """In a few words, what kernels of this kind do with this dtype here."""
    if kind == "cuda":
        return f"kernels of csrc/ for {local_arch()}, cuBLAS"
    gemms = "its own GEMMs" if cpu_gemms(dtype) else "torch's GEMMs"
    return f"kernels of csrc/ for {platform.machine()}, {gemms}"


def cpu_gemms(dtype: torch.dtype) -> bool:
    """Whether `cpu_linear_ce` runs on this processor in this dtype."""
    code = DTYPES.get(dtype)
    return code is not None and load("cpu").ds_train_linear_ce_cpu_supported(code) == 1


def cpu_linear_ce(
    problem: Problem, upstream: Upstream | None, wanted: Wanted, chunk_bytes: int | None
) -> Result:
    """A `Compute` (problem.py): the whole op on the CPU, where `cpu_gemms` says so.

    The gradient of the weight has the weight's dtype.
    """
    result = empty_result(problem, wanted)
    hidden, weight = problem.hidden, problem.weight
    n, dim = hidden.shape
    call = LinearCE(
        rows=row_arguments(slice(0, n), problem, upstream, result, hidden.device),
        hidden=matrix(hidden, "hidden", (n, dim), hidden),
        hidden_stride=hidden.stride(0),
        weight=matrix(weight, "weight", (weight.shape[0], dim), hidden),
        weight_stride=weight.stride(0),
        dim=dim,
        grad_weight_dtype=DTYPES[weight.dtype],
        logits_bytes=chunk_bytes or CPU_LOGITS_BYTES,
    )
    call.rows.dtype = DTYPES[hidden.dtype]
    call.rows.write_gradient = int(upstream is not None and wanted.gradient)
    if call.rows.write_gradient and wanted.hidden:
        result.grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        call.grad_hidden = result.grad_hidden.data_ptr()
    if call.rows.write_gradient and wanted.weight:
        result.grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        call.grad_weight = result.grad_weight.data_ptr()
    if call.rows.write_gradient and wanted.bias:
        result.grad_bias = hidden.new_empty(weight.shape[0], dtype=torch.float32)
        call.grad_bias = result.grad_bias.data_ptr()
    _check(load("cpu").ds_train_linear_ce_cpu(ctypes.byref(call)), "ds_train_linear_ce_cpu")
    return result


def _check(code: int, function: str) -> None:
    if code != 0:
        raise RuntimeError(f"{function}: failed with code {code}")


def check_device(kernels: ctypes.CDLL) -> None:
    """BuildError where the driver is too old for the compiler's code, or the code not for it."""
    if (code := kernels.ds_train_cuda_check(torch.cuda.current_device())) != 0:
        name = kernels.ds_train_cuda_error(code).decode()
        raise BuildError(f"cuda kernels: compiled, but this GPU's driver says {name}")


def open_library(kind: Kind, path: Path) -> ctypes.CDLL:
    """The library at `path`, its functions typed. Raises BuildError if it isn't what we know."""
    try:
        loaded = ctypes.CDLL(str(path))
        for struct, name in (
            (LogitRows, "logit_rows"),
            (SlabRows, "slab_rows"),
            (LinearCE, "linear_ce"),
        ):
            if fault := layout_fault(struct, getattr(loaded, f"ds_train_layout_{name}")):
                raise BuildError(f"{path}: {fault}")
        for function, arguments in _FUNCTIONS[kind].items():
            getattr(loaded, function).argtypes = arguments
            getattr(loaded, function).restype = ctypes.c_int
        if kind == "cuda":
            loaded.ds_train_cuda_error.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise BuildError(f"{kind} kernels: cannot load {path} ({reason(error)})") from None
    return loaded


_FUNCTIONS: dict[Kind, dict[str, list[Any]]] = {
    "cpu": {
        "ds_train_rows_cpu": [ctypes.POINTER(LogitRows)],
        "ds_train_slab_cpu": [ctypes.POINTER(SlabRows)],
        "ds_train_slabs_end_cpu": [ctypes.POINTER(SlabRows)],
        "ds_train_linear_ce_cpu": [ctypes.POINTER(LinearCE)],
        "ds_train_linear_ce_cpu_supported": [ctypes.c_int],
    },
    "cuda": {
        "ds_train_rows_cuda": [ctypes.POINTER(LogitRows), ctypes.c_int, ctypes.c_void_p],
        "ds_train_cuda_check": [ctypes.c_int],
        "ds_train_cuda_error": [ctypes.c_int],
    },
    "emulated": {
        "ds_train_rows_emulated": [ctypes.POINTER(LogitRows), ctypes.c_int, ctypes.c_int],
    },
}
