"""The CPU kernel in bf16 keeps exponentials for the weight's gradient in up to three ways at once:
in the gradient's memory, in a buffer, or not at all; for the bias's gradient it keeps none. Its
threads share all work by a list.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from implementations import why_not
from loss_cases import Outcome, Subject, changed, check, error, fused, make_inputs, truth

from ds_train.ops import native

MANY_THREADS = 4
PROBLEMS = 60


@pytest.fixture(params=["avx512", "avx512_bf16", "amx"])
def own_gemms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """The instruction sets that the kernel has its own products for."""
    subject = Subject("cpu", isa=request.param)
    monkeypatch.setenv("DS_TRAIN_CPU_ISA", request.param)
    if (reason := why_not(subject)) is not None:
        pytest.skip(reason)
    if not native.cpu_gemms(torch.bfloat16):
        pytest.skip("this processor has no bf16 products")
    return subject


@pytest.fixture
def threads() -> Iterator[None]:
    """Their number may be changed."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("chunk_bytes", [1, 150_000, 10**8])
@pytest.mark.parametrize("spread", [2.0, 60.0], ids=["plain", "references-rise"])
@pytest.mark.parametrize(
    ("n", "d", "v"),
    [
        (200, 64, 1024),  # some tokens in the gradient, some in the buffer, some computed again
        (200, 96, 1111),  # and a last slab that is filled up with columns that aren't there
        (70, 257, 600),  # all in the gradient
        (300, 256, 512),  # a stride that is avoided
        (100, 20, 700),  # none in the gradient
    ],
)
def test_wherever_exponentials_are_kept(
    own_gemms: Subject, n: int, d: int, v: int, spread: float, chunk_bytes: int
) -> None:
    inputs = make_inputs(n, d, v, torch.bfloat16, masked=0, spread=spread)
    check(own_gemms, inputs, extra={"chunk_bytes": chunk_bytes}, slack=2)


@pytest.mark.parametrize("settings", [{}, {"z_loss": 0.1}, {"softcap": 5.0}])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_grad_bias_sums_what_is_not_rounded(
    own_gemms: Subject, settings: dict[str, float], smoothing: float
) -> None:
    """A bias in fp32 gets a gradient as exact as fp32, though the logits' is rounded to bf16."""
    inputs = make_inputs(90, 64, 700, torch.bfloat16, spread=2.0)
    inputs = changed(inputs, bias=torch.randn(700, generator=torch.Generator().manual_seed(0)))
    settings = {**settings, "label_smoothing": smoothing}
    found = fused(own_gemms, inputs, **settings).gradients["bias"]
    assert error(found, truth(inputs, **settings).gradients["bias"]) < 2e-6


def test_threads_change_no_bit(own_gemms: Subject, threads: None) -> None:
    """Small problems, of which the threads soon have nothing to do but wait for each other."""
    draw = random.Random(0)
    for seed in range(PROBLEMS):
        n, d = draw.choice((1, 2, 33, 64, 100)), draw.choice((8, 31, 64, 96))
        v = draw.choice((300, 1500, 4097, 9000))
        options = {
            "chunk_bytes": draw.choice((1, 200_000, 10**9)),
            "label_smoothing": draw.choice((0.0, 0.1)),
            "softcap": draw.choice((None, 5.0)),
        }
        inputs = make_inputs(n, d, v, torch.bfloat16, seed=seed, masked=0, bias=draw.random() < 0.5)
        outcomes: list[Outcome] = []
        for count in (1, MANY_THREADS):
            torch.set_num_threads(count)
            outcomes.append(fused(own_gemms, inputs, "mean", **options))
        one, many = outcomes
        assert torch.equal(one.loss, many.loss), (n, d, v, options)
        for name, gradient in one.gradients.items():
            wrong = error(many.gradients[name], gradient)
            assert torch.equal(gradient, many.gradients[name]), (name, wrong, n, d, v, options)


@pytest.mark.parametrize(
    "settings", [{}, {"label_smoothing": 0.1, "softcap": 5.0}], ids=["plain", "exact"]
)
@pytest.mark.parametrize(("n", "d", "v"), [(600, 320, 7000), (40, 640, 4097)])
def test_threads_with_a_part_of_their_own_change_no_bit(
    own_gemms: Subject, threads: None, n: int, d: int, v: int, settings: dict[str, float]
) -> None:
    """grad_hidden in several items, which threads come back to; a gradient of more than 4 MiB,
    whose pages one of four threads makes."""
    inputs = make_inputs(n, d, v, torch.bfloat16, masked=0, spread=2.0)
    torch.set_num_threads(1)
    alone = check(own_gemms, inputs, **settings)
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        together = fused(own_gemms, inputs, **settings)
        assert torch.equal(alone.loss, together.loss), count
        for name, gradient in alone.gradients.items():
            assert torch.equal(gradient, together.gradients[name]), (name, count)
