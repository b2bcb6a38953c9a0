"""The same values elsewhere in memory: transposed, sliced, expanded, unaligned, other integers."""

from __future__ import annotations

import math

import pytest
import torch
from loss_cases import DTYPE_NAMES, DTYPES, Subject, changed, error, fused, make_inputs
from torch import Tensor

all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NAMES)
LAYOUTS = ["transposed", "sliced", "offset", "expanded", "strided-rows"]


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values elsewhere in memory, among NaN."""
    rows, columns = tensor.shape
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "expanded":
        return tensor[:1].expand(rows, columns)
    room = tensor.new_full((2 * rows + 3, columns + 5), math.nan)
    if layout == "offset":
        room = tensor.new_full((rows * columns + 3,), math.nan)
        view = room[3:].view(rows, columns)
    elif layout == "sliced":
        view = room[1 : rows + 1, 3 : columns + 3]
    else:
        view = room[: 2 * rows : 2, 1 : columns + 1]
    view.copy_(tensor)
    return view


@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["hidden", "weight"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_memory_layouts(
    any_subject: Subject, layout: str, which: str, reduction: str, dtype: torch.dtype
) -> None:
    inputs = make_inputs(33, 24, 51, dtype, spread=0.5).to(any_subject.device)
    tensor = vars(inputs)[which]
    view = laid_out(tensor, layout)
    dense = changed(inputs, **{which: view.contiguous()})
    expected = fused(any_subject, dense, reduction)
    got = fused(any_subject, changed(inputs, **{which: view}), reduction)
    # a GEMM may add up in another order where rows lie apart
    tolerance = 2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert error(got.loss, expected.loss) <= tolerance
    for name, gradient in got.gradients.items():
        assert gradient.shape == expected.gradients[name].shape
        if (which, layout, name) == ("weight", "expanded", "hidden"):
            continue  # all classes are one: the gradient is 0 but for rounding
        assert error(gradient, expected.gradients[name]) <= tolerance, name


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8])
def test_labels_of_other_integers(any_subject: Subject, dtype: torch.dtype) -> None:
    inputs = make_inputs(n=20)
    narrow = changed(inputs, labels=inputs.labels.to(dtype))
    assert torch.equal(fused(any_subject, narrow).loss, fused(any_subject, inputs).loss)


def test_labels_that_lie_anywhere(any_subject: Subject) -> None:
    """A slice that no 16-byte load may touch, and one with a stride."""
    inputs = make_inputs(n=21)
    expected = fused(any_subject, inputs).loss
    for start, step in ((1, 1), (0, 2)):
        room = torch.full((64,), 10**9)
        view = room[start : start + 21 * step : step]
        view.copy_(inputs.labels)
        assert torch.equal(fused(any_subject, changed(inputs, labels=view)).loss, expected)
