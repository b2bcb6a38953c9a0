"""How many logits the fused loss holds at a time; the loops of `ops/` do it.

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
ROW_BLOCK = 1024
"""DS_TRAIN_ROW_BLOCK of csrc/rows.h: a slab has a multiple of these columns."""
SLAB_BYTES = 4 * _MIB
"""Beside the padding. In fp32, at 512 tokens, 896 wide, a vocabulary of 32768, slabs of 2, 4 and
8 MiB took the same time to 3 % (processor time of one thread)."""
PASS_ROWS = 4096
"""Most that slabs of columns come by for at once; a product of so many rows does not notice that
the weight is read again for the next."""
SLAB_PADDING = 16  # elements; rows of a slab are a cache line more than a multiple of 4 KiB apart


def slab_columns(
    num_rows: int, dim: int, vocab: int, element_bytes: int, chunk_bytes: int | None
) -> int | None:
    """Columns of a slab where the logits can wait in the memory of the weight's gradient.

    None where they can't: the gradient of a slab, [columns, dim], has to have room for the slab's
    logits, [num_rows, columns + padding]; or where one slab would be the whole vocabulary.
    """
    columns = _columns(num_rows * element_bytes, chunk_bytes)
    if not 0 < columns < vocab or num_rows * (columns + SLAB_PADDING) > columns * dim:
        return None
    return columns


def pass_columns(
    num_rows: int, vocab: int, element_bytes: int, chunk_bytes: int | None
) -> int | None:
    """Columns of a slab that comes by where the output layer does not train.

    None where one slab would be the whole vocabulary, or `chunk_bytes` too few for a block.
    """
    columns = _columns(pass_rows(num_rows) * element_bytes, chunk_bytes)
    return columns if 0 < columns < vocab else None


def pass_rows(num_rows: int) -> int:
    """Rows that slabs come by for at once; the passes are about equally long."""
    return math.ceil(num_rows / math.ceil(num_rows / PASS_ROWS))


def _columns(column_bytes: int, chunk_bytes: int | None) -> int:
    """Whole blocks."""
    if chunk_bytes is None:
        return max(1, SLAB_BYTES // column_bytes // ROW_BLOCK) * ROW_BLOCK
    return (chunk_bytes // column_bytes - SLAB_PADDING) // ROW_BLOCK * ROW_BLOCK


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
