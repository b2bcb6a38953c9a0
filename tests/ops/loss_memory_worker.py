"""Measures in a process of its own what memory the loss takes: pages, not torch's allocator.

The C++ kernels and the GEMM libraries allocate for themselves; what the operating system had to
give is the truth about all of them.

usage: loss_memory_worker.py IMPLEMENTATION...; prints a JSON object {case: peak extra bytes}.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ds_train.ops import linear_cross_entropy

N, D, V = 64, 384, 16_000
CHUNK_BYTES = 2**20
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEADS = ("full", "frozen", "evaluation")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WORKER = Path(__file__)


def resident_bytes(field: str) -> int:
    """VmRSS: now; VmHWM: the most since the last reset."""
    line = next(one for one in STATUS.read_text().splitlines() if one.startswith(field))
    return int(line.split()[1]) * 1024


def peak_extra(function: Callable[[], object]) -> int:
    """Bytes beyond what was there before; what the function returns counts."""
    function()  # code pages, thread pools, what a GEMM library keeps
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes("VmRSS")
    CLEAR.write_text("5")
    result = function()
    peak = resident_bytes("VmHWM")
    del result
    return peak - before


def case(implementation: str, dtype: torch.dtype, head: str) -> int:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=g).to(dtype).requires_grad_(head != "evaluation")
    weight = torch.randn(V, D, generator=g).to(dtype).requires_grad_(head == "full")
    labels = torch.randint(0, V, (N,), generator=g)
    labels[: N // 4] = -100

    def function() -> object:
        loss = linear_cross_entropy(
            hidden, weight, labels, chunk_bytes=CHUNK_BYTES, implementation=implementation
        )
        if head == "evaluation":
            return loss
        leaves = [leaf for leaf in (hidden, weight) if leaf.requires_grad]
        # as in training: a factor that is not 1
        return torch.autograd.grad(loss * 0.5, leaves)

    return peak_extra(function)


def main() -> None:
    """Every case of the implementations named."""
    torch.set_num_threads(1)
    found = {
        f"{implementation}-{name}-{head}": case(implementation, dtype, head)
        for implementation, (name, dtype), head in itertools.product(
            sys.argv[1:], DTYPES.items(), HEADS
        )
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
