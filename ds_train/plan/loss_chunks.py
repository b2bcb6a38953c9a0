"""How many rows of logits the fused loss computes at a time; `ops/row_loop.py` does what it says.

Here, below torch, so that a plan counts the same memory that the loss takes.
"""

from __future__ import annotations

import math

_MIB = 2**20
# rows at which the GEMMs are bound by arithmetic, not by reading the weight again: measured and
# derived in csrc/README.md
_DEFAULT_BYTES = {("cuda", False): 256 * _MIB, ("cuda", True): 512 * _MIB}
_DEFAULT_BYTES_ELSEWHERE = {False: 64 * _MIB, True: 128 * _MIB}
_FEWEST_ROWS, _MOST_ROWS, _ROUND = 256, 8192, 128
CPU_LOGITS_BYTES = 16 * _MIB
"""Of the CPU's own products in bf16, beside what has room in the weight's gradient itself. On two
cores with AMX, in bf16, 16 to 150 MiB took the same time to 4 % (CPU time, 2048 tokens, 576 wide, a
vocabulary of 49152): new pages cost what computing again costs."""


def chunk_rows(
    num_rows: int, row_bytes: int, chunk_bytes: int | None, device: str, weight_gradient: bool
) -> int:
    """Rows of a chunk; chunks of one loop differ by at most one row's worth of rounding."""
    if chunk_bytes is not None:
        most = max(1, chunk_bytes // row_bytes)
    else:
        default = _DEFAULT_BYTES.get(
            (device, weight_gradient), _DEFAULT_BYTES_ELSEWHERE[weight_gradient]
        )
        most = default // row_bytes // _ROUND * _ROUND
        most = min(max(most, _FEWEST_ROWS), _MOST_ROWS)
    num_chunks = max(1, math.ceil(num_rows / most))
    balanced = math.ceil(num_rows / num_chunks)
    if chunk_bytes is None and num_chunks > 1:  # whole tiles of the GEMM, where memory allows
        balanced = min(most, -(-balanced // _ROUND) * _ROUND)
    return max(1, balanced)
