"""The GPU kernel's arithmetic, driven on the CPU by the same blocks, warps and lanes."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from row_cases import FEATURES, GRADIENTS, Kernel, make_case
from torch import Tensor

from ds_train.errors import BuildError
from ds_train.ops.native import load
from ds_train.ops.problem import Problem, Result, Upstream
from ds_train.ops.structs import logit_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BLOCKS = [(32, 1), (64, 2), (512, 1), (512, 4), (1024, 1)]


def emulated(threads: int = 64, cluster: int = 1) -> Kernel:
    """The emulated kernel with this many threads a block and blocks a row."""
    try:
        function = load("emulated").ds_train_rows_emulated
    except BuildError as error:
        pytest.skip(str(error))

    def kernel(logits: Tensor, problem: Problem, up: Upstream | None, result: Result) -> None:
        call = logit_rows(logits, slice(0, logits.shape[0]), problem, up, result)
        assert function(ctypes.byref(call), threads, cluster) == 0

    return kernel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 3, 7, 8, 9, 15, 16, 17, 127, 1000, 4097, 9001])
def test_sizes_and_blocks(vocab: int, dtype: torch.dtype) -> None:
    case = make_case(5, vocab, dtype)
    for threads, cluster in BLOCKS:
        case.check(emulated(threads, cluster))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("feature", FEATURES)
def test_each_feature_alone(feature: str, dtype: torch.dtype) -> None:
    make_case(6, 301, dtype, (feature,), None).check(emulated())
    make_case(6, 301, dtype, (feature,), ("logprob",)).check(emulated())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GRADIENTS)
def test_each_gradient_alone(name: str, dtype: torch.dtype) -> None:
    for features in ((), ("softcap",), ("class_weight",), ("bias", "scale")):
        make_case(6, 301, dtype, features, (name,)).check(emulated(64, 2))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.integers(1, 700),
    st.sets(st.sampled_from(FEATURES)),
    st.none() | st.sets(st.sampled_from(GRADIENTS)),
    st.sampled_from(BLOCKS),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([0.01, 1.0, 20.0]),
)
def test_features_together(
    dtype, vocab, features, gradients, block, offset, padding, spread
) -> None:
    names = None if gradients is None else tuple(sorted(gradients))
    case = make_case(
        3, vocab, dtype, tuple(features), names, offset=offset, padding=padding, spread=spread
    )
    case.check(emulated(*block))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [-1.5, -1e-3, 0.0, 1e-3, 4.0])
def test_any_scale(scale: float, dtype: torch.dtype) -> None:
    make_case(4, 77, dtype, ("logit_sum", "entropy"), GRADIENTS, logit_scale=scale).check(
        emulated()
    )


@pytest.mark.parametrize("softcap", [0.5, 30.0, 50.0, 1000.0])
def test_any_soft_cap(softcap: float) -> None:
    case = make_case(4, 77, torch.bfloat16, (), GRADIENTS, spread=8.0, softcap=softcap)
    case.check(emulated())


def test_every_distance_from_an_aligned_address() -> None:
    for dtype in DTYPES:
        for offset in range(9):
            for vocab in (1, 5, 8, 11, 23, 64, 67):
                case = make_case(3, vocab, dtype, ("bias",), offset=offset, padding=offset % 5)
                case.check(emulated(32))


@pytest.mark.parametrize("features", [(), ("softcap",), ("bias", "entropy", "logit_sum")])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_its_rows_alone(value: float, features) -> None:
    for column in (0, 3, 60, 99):
        for label in (column, 5):
            case = make_case(4, 100, torch.float32, features, ("logprob", *features[1:]))
            case.logits[1, column] = value
            case.problem.labels[1] = label
            case.check(emulated(32, 2))


@pytest.mark.parametrize("features", [(), ("bias", "class_weight", "entropy", "logit_sum")])
def test_masked_classes(features: tuple[str, ...]) -> None:
    for dtype in DTYPES:
        case = make_case(5, 200, dtype, features, GRADIENTS if features else ("logprob",))
        case.logits[:, 40:160] = -math.inf
        case.problem.labels[0] = 50  # masked itself
        case.logits[1] = -math.inf
        case.logits[2] = -math.inf
        case.logits[2, 7] = 1.5  # one class left, and it's another than the label's, ...
        case.problem.labels[2] = 8
        case.logits[3] = -math.inf
        case.logits[3, 7] = 1.5  # ... or the label's
        case.problem.labels[3] = 7
        for block in BLOCKS:
            case.check(emulated(*block))


@pytest.mark.parametrize("label", [-1, -100, 100, 2**40, -(2**40)])
def test_a_label_that_does_not_exist(label: int) -> None:
    case = make_case(3, 100, torch.bfloat16, ("entropy", "logit_sum"))
    case.problem.labels[1] = label
    case.check(emulated())
    result, out = case.run(emulated())
    assert out[1].isnan().all() and not out[[0, 2]].isnan().any()
    assert result.logprob[1].isnan() and not result.logprob[[0, 2]].isnan().any()


def test_large_logits_and_offsets() -> None:
    for spread in (1e2, 1e4, 1e8):
        for dtype in DTYPES[: 2 if spread > 1e4 else 3]:
            case = make_case(4, 100, dtype, ("entropy",), ("logprob", "entropy"), spread=spread)
            case.check(emulated())
    plain = make_case(4, 100, torch.float32)
    plain.logits.copy_((plain.logits * 4).round())
    moved = replace(plain, memory=plain.memory.clone())
    moved.logits = moved.memory.as_strided((4, 100), (100, 1))
    moved.logits += 2.0**20
    (here, gradient), (there, moved_gradient) = plain.run(emulated()), moved.run(emulated())
    torch.testing.assert_close(there.logprob, here.logprob, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moved_gradient, gradient, rtol=1e-5, atol=1e-9)


def test_equal_logits() -> None:
    for value in (0.0, 1e8, -1e8):
        case = make_case(2, 1000, torch.float32, ("entropy",))
        case.logits.fill_(value)
        case.problem.labels.copy_(torch.tensor([0, 500]))
        result, _ = case.run(emulated())
        torch.testing.assert_close(result.logprob, torch.full((2,), -math.log(1000)))
        torch.testing.assert_close(result.entropy, torch.full((2,), math.log(1000)))
        assert result.correct is not None and result.correct.tolist() == [True, False]


def test_a_nearly_certain_label_keeps_its_digits() -> None:
    """1 - p is a sum of small numbers, not a difference of near ones."""
    for gap in (5.0, 10.0, 15.0, 20.0, 40.0):
        case = make_case(3, 50, torch.float32)
        case.logits[range(3), case.problem.labels] = gap
        result, out = case.run(emulated())
        z = case.logits.double()
        others = z.scatter(1, case.problem.labels[:, None], -math.inf).logsumexp(1)
        odds = torch.exp(others - gap)
        assert case.upstream is not None and case.upstream.logprob is not None
        wanted = case.upstream.logprob.double() * odds / (1 + odds)
        label_gradient = out[range(3), case.problem.labels].double()
        torch.testing.assert_close(label_gradient, wanted, rtol=1e-5, atol=0.0)
        torch.testing.assert_close(result.logprob.double(), -odds.log1p(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_first_of_equal_maxima_counts(block: tuple[int, int]) -> None:
    first = 0
    for seed in range(20):
        case = make_case(4, 129, torch.bfloat16, seed=seed)
        case.logits.copy_(case.logits.round().clamp(-2, 2))  # many are the largest
        result, _ = case.run(emulated(*block))
        assert result.correct is not None
        expected = case.logits.argmax(1) == case.problem.labels
        assert result.correct.tolist() == expected.tolist()
        first += int(expected.sum())
        case.problem.labels.copy_(case.logits.argmax(1))
        result, _ = case.run(emulated(*block))
        assert result.correct is not None and result.correct.all()
    assert first < 80


def test_unknown_dtypes_and_blocks_are_refused() -> None:
    run: Callable[..., int] = load("emulated").ds_train_rows_emulated
    case = make_case(2, 10)
    result, _ = case.run(emulated())
    call = logit_rows(case.logits, slice(0, 2), case.problem, case.upstream, result)
    assert run(ctypes.byref(call), 48, 1) == 1
    call.dtype = 9
    assert run(ctypes.byref(call), 64, 1) == -1
