"""What only a GPU can be asked: synchronisation, graphs, streams, devices, sizes, memory.

The other files of this folder run on CUDA as they are, through `subject`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from implementations import NO_GPU, why_not
from loss_cases import IGNORE, Inputs, Subject, error, fused, make_inputs, truth
from torch import Tensor

from ds_train.ops import linear_cross_entropy, linear_logprobs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
SUBJECTS = [Subject("chunked", "cuda"), Subject("cuda", "cuda")]
either = pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
MIB = 2**20


@pytest.fixture(params=SUBJECTS, ids=str)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Both implementations that take CUDA tensors."""
    if (reason := why_not(request.param)) is not None:
        pytest.skip(reason)
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Filling costs time and launches: not where these are what is looked at."""
    torch.use_deterministic_algorithms(False)
    yield


def on_gpu(**sizes: Any) -> tuple[Inputs, int]:
    """Inputs with leaves, and the number of supervised rows."""
    inputs = make_inputs(**sizes)
    count = int((inputs.labels != IGNORE).sum())
    inputs = inputs.to("cuda")
    for leaf in inputs.leaves().values():
        leaf.requires_grad_()
    return inputs, count


def call(subject: Subject, inputs: Inputs, reduction: str = "sum", **options: Any) -> Tensor:
    result = linear_cross_entropy(
        inputs.hidden, inputs.weight, inputs.labels, **inputs.arguments(), reduction=reduction,
        implementation=subject.implementation, **options,
    )  # fmt: skip
    return result if isinstance(result, Tensor) else result[0]


@either
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("masked", [0.0, 0.4])
def test_nothing_waits_for_the_device(
    subject: Subject, reduction: str, dtype: torch.dtype, masked: float
) -> None:
    inputs, count = on_gpu(
        n=300, v=1000, dtype=dtype, masked=masked, bias=True, class_weight=True, token_weights=True
    )
    options: dict[str, Any] = {
        "num_supervised": count, "label_smoothing": 0.1, "z_loss": 0.01, "chunk_bytes": 10**5,
    }  # fmt: skip
    leaves = list(inputs.leaves().values())
    call(subject, inputs, reduction, **options).sum().backward()  # first call: libraries load
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = call(subject, inputs, reduction, return_stats=True, **options)
        gradients = torch.autograd.grad(loss.sum() * 0.5, leaves)
        logprob, entropy = linear_logprobs(
            inputs.hidden, inputs.weight, inputs.labels, return_entropy=True,
            num_supervised=count, implementation=subject.implementation,
        )  # fmt: skip
        (logprob - entropy).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_asking_for_the_number_is_what_waits(subject: Subject) -> None:
    """So that the test above is known to see it."""
    inputs, _ = on_gpu()
    call(subject, inputs)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            call(subject, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_graph_capture_and_replay(subject: Subject, reduction: str) -> None:
    inputs, count = on_gpu(n=64, v=500, dtype=torch.bfloat16)
    leaves = list(inputs.leaves().values())

    def step() -> list[Tensor]:
        loss = call(subject, inputs, reduction, num_supervised=count, chunk_bytes=30_000)
        return [loss.detach(), *torch.autograd.grad(loss.sum() * 2, leaves)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (11, 12):
        other = make_inputs(n=64, v=500, dtype=torch.bfloat16, seed=seed)
        keep = other.labels.clamp_min(0)
        with torch.no_grad():
            inputs.hidden.copy_(other.hidden)
            # the same number of supervised rows, elsewhere
            inputs.labels.copy_(torch.where(inputs.labels.cpu() == IGNORE, IGNORE, keep).flip(0))
        graph.replay()
        for one, expected in zip(captured, step(), strict=True):
            assert torch.equal(one, expected)


def test_another_stream(subject: Subject) -> None:
    inputs, count = on_gpu(n=400, v=3000)
    expected = call(subject, inputs).item()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what runs on another stream now overtakes
        hidden = inputs.hidden.detach() * 1.0
        loss = linear_cross_entropy(
            hidden, inputs.weight, inputs.labels, num_supervised=count,
            implementation=subject.implementation,
        )  # fmt: skip
    stream.synchronize()
    assert loss.item() == expected


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device(subject: Subject) -> None:
    inputs = make_inputs()
    other = Subject(subject.implementation, "cuda:1")
    assert torch.cuda.current_device() == 0
    assert error(fused(other, inputs).loss, fused(subject, inputs).loss) == 0
    assert torch.cuda.current_device() == 0


@either
@pytest.mark.parametrize("label", [53, -1, 2**40])
def test_a_label_outside_the_vocabulary_makes_its_row_nan(
    subject: Subject, reduction: str, label: int
) -> None:
    inputs, _ = on_gpu(masked=0.0)
    clean = call(subject, inputs, "none").detach()
    with torch.no_grad():
        inputs.labels[5] = label
    loss = call(subject, inputs, reduction)
    (gradient,) = torch.autograd.grad(loss.sum(), inputs.hidden)
    others = torch.arange(37, device="cuda") != 5
    if reduction == "none":
        assert loss[5].isnan() and torch.equal(loss[others], clean[others])
        assert gradient[others].isfinite().all()
    else:
        assert loss.isnan()
    assert gradient[5].isnan().all()


@either
@pytest.mark.parametrize("difference", [-1, 1])
def test_a_wrong_number_of_supervised_rows_makes_the_loss_nan(
    subject: Subject, reduction: str, difference: int
) -> None:
    inputs, count = on_gpu()
    assert call(subject, inputs, reduction, num_supervised=count).isfinite().all()
    assert call(subject, inputs, reduction, num_supervised=count + difference).isnan().any()
    logprob = linear_logprobs(
        inputs.hidden, inputs.weight, inputs.labels, num_supervised=count + difference,
        implementation=subject.implementation,
    )  # fmt: skip
    assert isinstance(logprob, Tensor) and logprob.isnan().any()


def test_offsets_beyond_32_bits(subject: Subject) -> None:
    """17,000 rows of 131,072 logits are 2.2e9: in one chunk, and in many."""
    n, v, d = 17_000, 131_072, 8
    g = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(n, d, device="cuda", generator=g).bfloat16()
    weight = torch.randn(v, d, device="cuda", generator=g).bfloat16()
    labels = torch.randint(0, v, (n,), device="cuda", generator=g)
    options: dict[str, Any] = {"reduction": "none", "implementation": subject.implementation}
    size = 2 if subject.implementation == "cuda" else 14
    if torch.cuda.mem_get_info()[0] < 1.2 * n * v * size:
        pytest.skip(f"needs {1.2 * n * v * size / 2**30:.0f} GiB of GPU memory")
    one = linear_cross_entropy(hidden, weight, labels, chunk_bytes=n * v * 16, **options)
    many = linear_cross_entropy(hidden, weight, labels, chunk_bytes=2**28, **options)
    assert isinstance(one, Tensor) and isinstance(many, Tensor)
    assert error(one, many.cpu()) < 1e-6
    last = Inputs(hidden[-50:].cpu(), weight.cpu(), labels[-50:].cpu())
    assert error(one[-50:], truth(last, "none").loss) < 2e-3
    hidden.requires_grad_()
    loss = linear_cross_entropy(
        hidden, weight, labels, chunk_bytes=n * v * 16, implementation=subject.implementation
    )
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert error(gradient[-50:], truth(last).gradients["hidden"] / 0.7) < 1e-2


@pytest.mark.parametrize("head", ["full", "frozen", "evaluation"])
@pytest.mark.parametrize("masked", [0.0, 0.5])
def test_peak_memory(subject: Subject, head: str, masked: float) -> None:
    n, d, v, chunk_bytes, size = 2048, 1024, 50_000, 32 * MIB, 2
    inputs, count = on_gpu(n=n, d=d, v=v, dtype=torch.bfloat16, masked=masked)
    inputs.weight.requires_grad_(head == "full")
    inputs.hidden.requires_grad_(head != "evaluation")
    leaves = [leaf for leaf in inputs.leaves().values() if leaf.requires_grad]

    def run() -> Any:
        options = {"num_supervised": count, "chunk_bytes": chunk_bytes}
        loss = call(subject, inputs, "mean", **options)
        return torch.autograd.grad(loss, leaves) if leaves else loss

    run()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    hidden, weight = n * d * size, v * d * size
    limit = chunk_bytes + hidden + 8 * n * 16
    if head != "evaluation":
        limit += 3 * hidden
    if head == "full":  # summed up in fp32, then rounded; or rounded, and scaled
        limit += max(v * d * (4 + size), 2 * weight)
    assert peak <= 1.05 * limit + MIB, f"{peak / MIB:.1f} MiB of {limit / MIB:.1f}"
    if head != "full":
        assert limit < weight  # so that a tensor of its size would be noticed


def test_losses_of_a_real_vocabulary(subject: Subject) -> None:
    """128,256 classes: more than one block of threads or registers hold at once."""
    inputs = make_inputs(96, 64, 128_256, torch.bfloat16, spread=3.0)
    ours, exact = fused(subject, inputs, "none"), truth(inputs, "none")
    assert error(ours.loss, exact.loss) < 2e-3
    for name in ("hidden", "weight"):
        assert error(ours.gradients[name], exact.gradients[name]) < 1e-2, name


def test_uniform_logits(subject: Subject) -> None:
    hidden, weight = torch.zeros(3, 8, device="cuda"), torch.zeros(128_257, 8, device="cuda")
    labels = torch.tensor([0, 70_000, 128_256], device="cuda")
    losses = linear_cross_entropy(
        hidden, weight, labels, reduction="none", implementation=subject.implementation
    )
    assert isinstance(losses, Tensor)
    assert losses.tolist() == pytest.approx([math.log(128_257)] * 3, rel=1e-6)
