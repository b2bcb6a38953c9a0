"""The row kernel against float64: on a GPU, and without one, driven on the CPU by the same blocks,
warps and lanes."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from row_cases import FEATURES, GRADIENTS, Case, Kernel, make_case
from torch import Tensor

from ds_train.ops.native import cuda_rows, load
from ds_train.ops.problem import Problem, Result, Upstream, Wanted
from ds_train.ops.structs import logit_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BLOCKS = [(64, 2), (32, 1), (512, 1), (512, 4), (1024, 1)]


@dataclass
class Rows:
    """Where the tests run: a kernel, or the same one with different blocks."""

    kernels: list[Kernel]
    device: str

    def make(self, *arguments: Any, **settings: Any) -> Case:
        """A case on this device."""
        return make_case(*arguments, **settings, device=self.device)

    def run(self, case: Case) -> tuple[Result, Tensor]:
        """Statistics and gradient of the first kernel."""
        return case.run(self.kernels[0])

    def check(self, case: Case) -> None:
        """Every kernel against the truth."""
        for kernel in self.kernels:
            case.check(kernel)


@pytest.fixture(scope="module", params=["emulated", "cuda"])
def rows(request: pytest.FixtureRequest) -> Rows:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        return Rows([on_gpu], "cuda")
    return Rows([emulated(*block) for block in BLOCKS], "cpu")


def on_gpu(logits: Tensor, problem: Problem, up: Upstream | None, result: Result) -> None:
    """The kernel itself."""
    cuda_rows(logits, slice(0, logits.shape[0]), problem, up, Wanted(), result)


def emulated(threads: int, cluster: int) -> Kernel:
    """The emulated kernel with this many threads a block and blocks a row."""
    function = load("emulated").ds_train_rows_emulated

    def kernel(logits: Tensor, problem: Problem, up: Upstream | None, result: Result) -> None:
        call = logit_rows(logits, slice(0, logits.shape[0]), problem, up, result)
        assert function(ctypes.byref(call), threads, cluster) == 0

    return kernel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 3, 7, 8, 9, 15, 16, 17, 127, 1000, 4097, 9001])
def test_sizes_and_blocks(rows: Rows, vocab: int, dtype: torch.dtype) -> None:
    case = rows.make(5, vocab, dtype)
    rows.check(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("feature", FEATURES)
def test_each_feature_alone(rows: Rows, feature: str, dtype: torch.dtype) -> None:
    rows.check(rows.make(6, 301, dtype, (feature,), None))
    rows.check(rows.make(6, 301, dtype, (feature,), ("logprob",)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GRADIENTS)
def test_each_gradient_alone(rows: Rows, name: str, dtype: torch.dtype) -> None:
    for features in ((), ("softcap",), ("class_weight",), ("bias", "scale")):
        rows.check(rows.make(6, 301, dtype, features, (name,)))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.integers(1, 700),
    st.sets(st.sampled_from(FEATURES)),
    st.none() | st.sets(st.sampled_from(GRADIENTS)),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([0.01, 1.0, 20.0]),
)
def test_features_together(
    rows: Rows, dtype, vocab, features, gradients, offset, padding, spread
) -> None:
    names = None if gradients is None else tuple(sorted(gradients))
    case = rows.make(
        3, vocab, dtype, tuple(features), names, offset=offset, padding=padding, spread=spread
    )
    rows.check(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [-1.5, -1e-3, 0.0, 1e-3, 4.0])
def test_any_scale(rows: Rows, scale: float, dtype: torch.dtype) -> None:
    features = ("logit_sum", "entropy")
    rows.check(rows.make(4, 77, dtype, features, GRADIENTS, logit_scale=scale))


@pytest.mark.parametrize("softcap", [0.5, 30.0, 50.0, 1e3, 1e5])
def test_any_soft_cap(rows: Rows, softcap: float) -> None:
    for spread, dtype in ((8.0, torch.bfloat16), (0.1, torch.float32)):
        case = rows.make(4, 77, dtype, (), GRADIENTS, spread=spread, softcap=softcap)
        rows.check(case)


def test_every_distance_from_an_aligned_address(rows: Rows) -> None:
    for dtype in DTYPES:
        for offset in range(9):
            for vocab in (1, 5, 8, 11, 23, 64, 67):
                case = rows.make(3, vocab, dtype, ("bias",), offset=offset, padding=offset % 5)
                rows.check(case)


@pytest.mark.parametrize("features", [(), ("softcap",), ("bias", "entropy", "logit_sum")])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_its_rows_alone(rows: Rows, value: float, features) -> None:
    for column in (0, 3, 60, 99):
        for label in (column, 5):
            case = rows.make(4, 100, torch.float32, features, ("logprob", *features[1:]))
            case.logits[1, column] = value
            case.problem.labels[1] = label
            rows.check(case)


@pytest.mark.parametrize("features", [(), ("bias", "class_weight", "entropy", "logit_sum")])
def test_masked_classes(rows: Rows, features: tuple[str, ...]) -> None:
    for dtype in DTYPES:
        case = rows.make(5, 200, dtype, features, GRADIENTS if features else ("logprob",))
        case.logits[:, 40:160] = -math.inf
        case.problem.labels[0] = 50  # masked itself
        case.logits[1] = -math.inf
        case.logits[2] = -math.inf
        case.logits[2, 7] = 1.5  # one class left, and it's another than the label's, ...
        case.problem.labels[2] = 8
        case.logits[3] = -math.inf
        case.logits[3, 7] = 1.5  # ... or the label's
        case.problem.labels[3] = 7
        rows.check(case)


@pytest.mark.parametrize("label", [-1, -100, 100, 2**40, -(2**40)])
def test_a_label_that_does_not_exist(rows: Rows, label: int) -> None:
    case = rows.make(3, 100, torch.bfloat16, ("entropy", "logit_sum"))
    case.problem.labels[1] = label
    rows.check(case)
    result, out = rows.run(case)
    assert out[1].isnan().all() and not out[[0, 2]].isnan().any()
    assert result.logprob[1].isnan() and not result.logprob[[0, 2]].isnan().any()


def test_large_logits_and_offsets(rows: Rows) -> None:
    for spread in (1e2, 1e4, 1e8):
        for dtype in DTYPES[: 2 if spread > 1e4 else 3]:
            case = rows.make(4, 100, dtype, ("entropy",), ("logprob", "entropy"), spread=spread)
            rows.check(case)
    plain = rows.make(4, 100, torch.float32)
    plain.logits.copy_((plain.logits * 4).round())
    moved = replace(plain, memory=plain.memory.clone())
    moved.logits = moved.memory.as_strided((4, 100), (100, 1))
    moved.logits += 2.0**20
    (here, gradient), (there, moved_gradient) = rows.run(plain), rows.run(moved)
    torch.testing.assert_close(there.logprob, here.logprob, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moved_gradient, gradient, rtol=1e-5, atol=1e-9)


def test_equal_logits(rows: Rows) -> None:
    for value in (0.0, 1e8, -1e8):
        case = rows.make(2, 1000, torch.float32, ("entropy",))
        case.logits.fill_(value)
        case.problem.labels.copy_(torch.tensor([0, 500]))
        result, _ = rows.run(case)
        assert result.entropy is not None
        torch.testing.assert_close(result.logprob.cpu(), torch.full((2,), -math.log(1000)))
        torch.testing.assert_close(result.entropy.cpu(), torch.full((2,), math.log(1000)))
        assert result.correct is not None and result.correct.tolist() == [True, False]


def test_a_nearly_certain_label_keeps_its_digits(rows: Rows) -> None:
    """1 - p is a sum of small numbers, not a difference of near ones."""
    for gap in (5.0, 10.0, 15.0, 20.0, 40.0):
        case = rows.make(3, 50, torch.float32)
        case.logits[range(3), case.problem.labels] = gap
        result, out = rows.run(case)
        z = case.logits.double()
        others = z.scatter(1, case.problem.labels[:, None], -math.inf).logsumexp(1)
        odds = torch.exp(others - gap)
        assert case.upstream is not None and case.upstream.logprob is not None
        wanted = case.upstream.logprob.double() * odds / (1 + odds)
        label_gradient = out[range(3), case.problem.labels].double()
        torch.testing.assert_close(label_gradient, wanted, rtol=1e-5, atol=0.0)
        torch.testing.assert_close(result.logprob.double(), -odds.log1p(), rtol=1e-5, atol=0.0)


def test_the_first_of_equal_maxima_counts(rows: Rows) -> None:
    first = 0
    for seed in range(20):
        case = rows.make(4, 129, torch.bfloat16, seed=seed)
        case.logits.copy_(case.logits.round().clamp(-2, 2))  # many are the largest
        rows.check(case)
        largest = case.logits.cpu().argmax(1)
        first += int((largest == case.problem.labels.cpu()).sum())
        case.problem.labels.copy_(largest)
        rows.check(case)
        result, _ = rows.run(case)
        assert result.correct is not None and result.correct.all()
    assert first < 80


def test_a_second_run_gives_the_same_bits(rows: Rows) -> None:
    case = rows.make(7, 4001, torch.bfloat16, FEATURES, GRADIENTS)
    for kernel in rows.kernels:
        (result, gradient), (again, same) = case.run(kernel), case.run(kernel)
        assert torch.equal(gradient, same)
        assert torch.equal(result.logprob, again.logprob)
        assert result.entropy is not None and again.entropy is not None
        assert torch.equal(result.entropy, again.entropy)


def test_unknown_dtypes_and_blocks_are_refused() -> None:
    function = load("emulated").ds_train_rows_emulated
    case = make_case(2, 10)
    result, _ = case.run(emulated(32, 1))
    call = logit_rows(case.logits, slice(0, 2), case.problem, case.upstream, result)
    assert function(ctypes.byref(call), 48, 1) == 1
    call.dtype = 9
    assert function(ctypes.byref(call), 64, 1) == -1
