"""The matrix product on AMX tiles, whose instructions are emulated: any x86-64 will do."""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch

from ds_train.ops.build import library

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is x86-64's")
COLUMNS = 32


def in_blocks(matrix: torch.Tensor, panel: int) -> torch.Tensor:
    """[m, k] as blocks of 32 x 32, `panel` elements from 32 rows to the next 32."""
    m, k = matrix.shape
    blocks = matrix.view(m // 32, 32, k // 32, 32).transpose(1, 2).reshape(m // 32, -1)
    out = torch.full((m // 32, panel), torch.nan, dtype=matrix.dtype)
    out[:, : blocks.shape[1]] = blocks
    return out


def in_pairs(matrix: torch.Tensor) -> torch.Tensor:
    """[k, 32] as [k/2, 32, 2]."""
    return matrix.view(-1, 2, COLUMNS).transpose(1, 2).contiguous()


def tile_product(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, *, accumulate: bool, units: int = 0
) -> int:
    """c = or += a b by the kernel; how many of the units beside it were left."""
    m, k = a.shape
    blocks, pairs = in_blocks(a, 32 * k + 32), in_pairs(b)
    kernel = ctypes.CDLL(str(library("emulated"))).ds_train_tiles_emulated
    kernel.restype = ctypes.c_int64
    pointers = [ctypes.c_void_p(one.data_ptr()) for one in (blocks, pairs, c)]
    size = ctypes.c_int64
    return int(
        kernel(
            *(size(m), size(k), pointers[0], size(blocks.shape[1]), pointers[1], pointers[2]),
            *(int(accumulate), size(units), size(3)),
        )
    )


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("m", "k"), [(32, 32), (64, 96), (256, 576), (96, 608), (32, 1184), (32, 1760)]
)
def test_product(m: int, k: int, accumulate: bool) -> None:
    """k up to three parts of what stays in the first cache."""
    torch.manual_seed(m + k)
    a, b = torch.randn(m, k, dtype=torch.bfloat16), torch.randn(k, COLUMNS, dtype=torch.bfloat16)
    before = torch.randn(m, COLUMNS)
    c = before.clone() if accumulate else torch.full((m, COLUMNS), torch.nan)
    assert tile_product(a, b, c, accumulate=accumulate) == 0
    expected = a.double() @ b.double() + (before.double() if accumulate else 0)
    # a sum of k products in fp32, each of which is exact
    allowed = k * 2.0**-24 * (a.double().abs() @ b.double().abs() + before.double().abs())
    assert ((c - expected).abs() <= allowed).all()


@pytest.mark.parametrize("units", [1, 7, 100])
def test_work_beside_it_is_spread_over_three_products(units: int) -> None:
    """Of 16 steps each: no product does much more than its part."""
    a, b = torch.ones(64, 256, dtype=torch.bfloat16), torch.ones(256, COLUMNS, dtype=torch.bfloat16)
    c = torch.empty(64, COLUMNS)
    left = tile_product(a, b, c, accumulate=False, units=units)
    assert (c == 256).all()
    a_step = -(-units // (3 * 16))
    assert left == max(0, units - 16 * a_step)
