"""Which implementation of the fused loss runs on which tensors, and why."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal, get_args

import torch

from ds_train.ops import native, one_pass, slab_loop
from ds_train.ops.one_pass import compute_in_one_pass
from ds_train.ops.problem import (
    Compute,
    Problem,
    Result,
    RowKernel,
    Upstream,
    Wanted,
    empty_result,
)
from ds_train.ops.row_loop import compute_in_chunks
from ds_train.ops.slab_loop import compute_in_slabs
from ds_train.ops.torch_rows import torch_rows

Implementation = Literal["auto", "reference", "chunked", "cpu", "cuda"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

_ROW_KERNELS: dict[str, tuple[RowKernel, int]] = {
    # z, exp and a product of both in fp32
    "chunked": (torch_rows, 3 * 4),
    "cpu": (native.cpu_rows, 0),
    "cuda": (native.cuda_rows, 0),
}
"""By implementation: the row kernel, and its bytes for each logit beside the logit itself."""


def choose(asked: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """Name of the implementation, and the reason for it in a few words.

    Raises:
        ValueError: the one asked for can't run on this device or dtype, or can't be built.
    """
    if asked == "reference" or asked == "chunked":
        return asked, "as asked for"
    if asked == "auto":
        if dtype == torch.float64:
            return "reference", "fp64"
        if device.type not in ("cpu", "cuda"):
            return "chunked", f"there is no other for {device.type}"
        missing = native.available(device.type)
        if missing is None:
            return device.type, native.describe(device.type, dtype)
        _warn_once(missing)
        return "chunked", missing
    if device.type != asked:
        raise ValueError(
            f"linear_cross_entropy: implementation {asked!r} needs tensors on {asked}, and they "
            f"are on {device.type}; use 'auto'"
        )
    if dtype == torch.float64:
        raise ValueError(
            f"linear_cross_entropy: implementation {asked!r} has no fp64; use 'reference'"
        )
    if (missing := native.available(asked)) is not None:
        raise ValueError(
            f"linear_cross_entropy: implementation {asked!r} is not there: {missing}; "
            "use 'auto' or 'chunked'"
        )
    return asked, "as asked for"


@cache
def _warn_once(missing: str) -> None:
    warnings.warn(
        f"linear_cross_entropy: the slower 'chunked' runs, as there is no faster one: {missing}",
        stacklevel=2,
    )


def compute_with(name: str) -> Compute:
    """The function of an implementation that was chosen; without rows there is nothing to run."""

    def compute(
        problem: Problem, upstream: Upstream | None, wanted: Wanted, chunk_bytes: int | None
    ) -> Result:
        if len(problem.labels) == 0:
            return _no_rows(problem, wanted)
        if name == "cpu" and native.cpu_gemms(problem.hidden.dtype):
            return native.cpu_linear_ce(problem, upstream, wanted, chunk_bytes)
        if name == "cpu" and upstream is not None and wanted.weight:
            columns = slab_loop.columns_of(problem, chunk_bytes)
            if columns is not None:
                return compute_in_slabs(problem, upstream, wanted, columns)
        elif name == "cpu":
            columns = one_pass.columns_of(problem, upstream, wanted, chunk_bytes)
            if columns is not None:
                return compute_in_one_pass(problem, upstream, wanted, columns)
        row_kernel, bytes_beside = _ROW_KERNELS[name]
        return compute_in_chunks(
            problem,
            upstream,
            wanted,
            chunk_bytes,
            row_kernel=row_kernel,
            bytes_per_logit=problem.hidden.element_size() + bytes_beside,
        )

    return compute


def _no_rows(problem: Problem, wanted: Wanted) -> Result:
    """Gradients of zeros: every rank has to have some."""
    result = empty_result(problem, wanted)
    if wanted.hidden:
        result.grad_hidden = torch.zeros_like(problem.hidden)
    if wanted.weight:
        result.grad_weight = torch.zeros_like(problem.weight)
    if wanted.bias:
        result.grad_bias = result.logprob.new_zeros(problem.weight.shape[0])
    return result
