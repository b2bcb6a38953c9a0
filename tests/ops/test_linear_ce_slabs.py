"""In fp32 on a CPU the logits wait in the memory of the weight's gradient, slab by slab."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from loss_cases import Subject, changed, check, error, fused, make_inputs

from ds_train.ops import linear_logprobs
from ds_train.plan.loss_chunks import ROW_BLOCK, SLAB_BYTES, SLAB_PADDING, slab_columns

N, D, V = 37, 40, 3001  # three slabs, the last one narrower
ONE_BLOCK = 4 * N * (ROW_BLOCK + SLAB_PADDING)


@pytest.fixture
def subject(isa_subject: Subject) -> Subject:
    """The kernel at each instruction set."""
    return isa_subject


@pytest.fixture
def taken(columns_of_calls: Callable[[str], list[int]]) -> list[int]:
    """The columns of a slab of each call that is computed in this way."""
    return columns_of_calls("compute_in_slabs")


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"label_smoothing": 0.1, "z_loss": 0.1},
        {"softcap": 5.0, "logit_scale": 0.5},
        {"label_smoothing": 0.2, "softcap": 3.0},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_against_float64(
    subject: Subject, taken: list[int], settings: dict[str, float], reduction: str
) -> None:
    inputs = make_inputs(N, D, V, bias=True, class_weight=True, token_weights=True, spread=2.0)
    check(subject, inputs, reduction, extra={"chunk_bytes": ONE_BLOCK}, **settings)
    assert taken == [ROW_BLOCK]


def test_same_losses_as_in_chunks_of_rows(subject: Subject, taken: list[int]) -> None:
    """The products are other ones, so they may round differently."""
    inputs = make_inputs(N, D, V)
    slabs = fused(subject, inputs, "none", chunk_bytes=ONE_BLOCK)
    rows = fused(subject, inputs, "none", chunk_bytes=4 * N * V)
    assert taken == [ROW_BLOCK]
    assert error(slabs.loss, rows.loss) < 1e-6
    for name, gradient in slabs.gradients.items():
        assert error(gradient, rows.gradients[name]) < 2e-6, name


def test_gradient_of_the_entropy(subject: Subject, taken: list[int]) -> None:
    inputs = make_inputs(N, D, V, masked=0, spread=2.0)
    found = []
    for dtype, name in ((torch.float32, "cpu"), (torch.float64, "reference")):
        hidden = inputs.hidden.to(dtype).clone().requires_grad_()
        weight = inputs.weight.to(dtype).clone().requires_grad_()
        logprob, entropy = linear_logprobs(
            hidden, weight, inputs.labels, return_entropy=True, implementation=name,
            chunk_bytes=ONE_BLOCK,
        )  # fmt: skip
        loss = logprob.sum() + 3 * entropy.square().sum()
        found.append(torch.autograd.grad(loss, [hidden, weight]))
    assert taken == [ROW_BLOCK]
    for ours, exact in zip(*found, strict=True):
        assert error(ours, exact) < 2e-6


def test_a_row_of_nan_stays_alone(subject: Subject, taken: list[int]) -> None:
    inputs = make_inputs(N, D, V, masked=0)
    hidden = inputs.hidden.clone()
    hidden[3, 5] = torch.nan
    found = fused(subject, changed(inputs, hidden=hidden), "none", chunk_bytes=ONE_BLOCK)
    alone = fused(subject, inputs, "none", chunk_bytes=ONE_BLOCK)
    others = torch.arange(N) != 3
    assert taken == [ROW_BLOCK] * 2
    assert found.loss[3].isnan() and found.gradients["hidden"][3].isnan().all()
    assert torch.equal(found.loss[others], alone.loss[others])
    assert torch.equal(found.gradients["hidden"][others], alone.gradients["hidden"][others])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_in_fp32(subject: Subject, taken: list[int], dtype: torch.dtype) -> None:
    fused(subject, make_inputs(N, D, V, dtype), chunk_bytes=ONE_BLOCK)
    assert not taken


def test_only_where_the_weight_trains(subject: Subject, taken: list[int]) -> None:
    inputs = make_inputs(N, D, V)
    hidden = inputs.hidden.requires_grad_()
    linear_logprobs(
        hidden, inputs.weight, inputs.labels, chunk_bytes=ONE_BLOCK, implementation="cpu"
    ).sum().backward()
    assert not taken


def test_slabs_have_room_in_the_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(300):
        n, d, v = (int(torch.randint(1, top, (), generator=draw)) for top in (3000, 3000, 60_000))
        columns = slab_columns(n, d, v, 4, None)
        seen.add(columns is None)
        if columns is not None:
            assert columns % ROW_BLOCK == 0 and columns < v
            assert (n - 1) * (columns + SLAB_PADDING) + columns <= columns * d
            assert columns == ROW_BLOCK or 4 * n * columns <= SLAB_BYTES
    assert seen == {True, False}
    assert slab_columns(512, 896, 32768, 4, None) == 2048
    assert slab_columns(900, 896, 32768, 4, None) is None  # more tokens than there is room for
    assert slab_columns(10, 896, 32768, 4, None) is None  # all logits are smaller than a slab
    assert slab_columns(512, 896, 32768, 4, 2**20) is None  # not one block of columns fits
