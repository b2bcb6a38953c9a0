"""What only a real GPU can show of the row kernel: clusters, streams, graphs, addresses past 2^32.

Its numbers are compared with float64 in test_row_math.py.
"""

from __future__ import annotations

import pytest
import torch
from row_cases import FEATURES, GRADIENTS, Case, assert_right, make_case
from torch import Tensor

from ds_train.ops.native import cuda_rows
from ds_train.ops.problem import Problem, Result, Upstream, Wanted, empty_result

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def kernel(logits: Tensor, problem: Problem, up: Upstream | None, result: Result) -> None:
    cuda_rows(logits, slice(0, logits.shape[0]), problem, up, Wanted(), result)


def repeated(case: Case, times: int) -> tuple[Result, Tensor]:
    """Statistics and gradient of the case's rows, this many times below each other."""
    problem, up = case.problem, case.upstream
    assert up is not None
    n = len(case.logits) * times
    tall = Problem(
        hidden=problem.hidden.repeat(times, 1),
        weight=problem.weight,
        labels=problem.labels.repeat(times),
        bias=problem.bias,
        class_weight=problem.class_weight,
        logit_scale=problem.logit_scale,
        softcap=problem.softcap,
    )
    tall_up = Upstream(
        **{k: None if one is None else one.repeat(times) for k, one in vars(up).items()}
    )
    # rows as far from an aligned address as the case's own, so that parts are merged alike
    rows, vocab = case.logits.shape
    logits = case.logits.new_empty(n, case.logits.stride(0))[:, :vocab]
    logits.view(times, rows, -1).copy_(case.logits)
    result = empty_result(tall, case.wanted)
    cuda_rows(logits, slice(0, n), tall, tall_up, Wanted(), result)
    return result, logits


@pytest.mark.parametrize("features", [(), FEATURES])
@pytest.mark.parametrize("vocab", [32000, 128256, 151937, 256000])
def test_long_rows_in_clusters_of_any_size(vocab: int, features: tuple[str, ...]) -> None:
    """Few rows spread over many blocks each; many rows, so that two passes fit the L2 cache."""
    gradients = GRADIENTS if features else ("logprob",)
    case = make_case(
        4, vocab, torch.bfloat16, features, gradients, padding=-vocab % 8, device="cuda"
    )
    case.check(kernel)
    for times in (20, 100):
        result, gradient = repeated(case, times)
        first = Result(**{k: None if one is None else one[:4] for k, one in vars(result).items()})
        assert_right(case, first, gradient[:4])
        assert torch.equal(gradient, gradient[:4].repeat(times, 1))
        assert torch.equal(result.logprob, result.logprob[:4].repeat(times))


def test_addresses_past_four_gigabytes() -> None:
    if torch.cuda.mem_get_info()[0] < 10 << 30:
        pytest.skip("needs 10 GiB of free memory on the GPU")
    small = make_case(3, 1000, torch.bfloat16, device="cuda")
    stride = (1 << 30) + 8
    memory = torch.zeros(2 * stride + 1000, dtype=torch.bfloat16, device="cuda")
    logits = memory.as_strided((3, 1000), (stride, 1))
    logits.copy_(small.logits)
    result = empty_result(small.problem, small.wanted)
    kernel(logits, small.problem, small.upstream, result)
    assert_right(small, result, logits)


def test_it_runs_on_the_current_stream_and_waits_for_nothing() -> None:
    case = make_case(64, 32000, torch.bfloat16, device="cuda")
    case.check(kernel)
    side, done = torch.cuda.Stream(), torch.cuda.Event()
    logits = case.logits.clone()
    result = empty_result(case.problem, case.wanted)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(1_000_000_000)  # most of a second
        kernel(logits, case.problem, case.upstream, result)
        done.record()
    assert not done.query(), "the call has waited for the device"
    done.synchronize()
    assert_right(case, result, logits)


def test_a_cuda_graph_replays_it() -> None:
    case = make_case(64, 128256, torch.bfloat16, device="cuda")
    case.check(kernel)
    logits = torch.empty_like(case.logits)
    result = empty_result(case.problem, case.wanted)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits.copy_(case.logits)
        kernel(logits, case.problem, case.upstream, result)
    for _ in range(2):
        logits.zero_()
        graph.replay()
        assert_right(case, result, logits)


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    case = make_case(5, 1000, torch.bfloat16, device="cuda:1")
    case.check(kernel)
    assert torch.cuda.current_device() == 0


def test_the_default_device_stays_as_it_was() -> None:
    before = torch.cuda.current_device()
    make_case(5, 1000, torch.bfloat16, device="cuda").check(kernel)
    assert torch.cuda.current_device() == before
    assert torch.zeros(1, device="cuda").device.index == before
