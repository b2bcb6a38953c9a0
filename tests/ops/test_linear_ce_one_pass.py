"""In fp32 on a CPU with a frozen head: slabs of the vocabulary come by, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_cases import (
    IGNORE,
    Inputs,
    Outcome,
    Subject,
    assert_exact_enough,
    changed,
    error,
    make_inputs,
    plain,
    scalar_of,
    truth,
)
from torch import Tensor

from ds_train.ops import linear_cross_entropy, linear_logprobs, native, one_pass
from ds_train.ops.problem import Problem, Upstream, Wanted
from ds_train.ops.structs import ROW_STATE
from ds_train.plan.loss_chunks import (
    PASS_ROWS,
    ROW_BLOCK,
    SLAB_BYTES,
    SLAB_PADDING,
    pass_columns,
    pass_rows,
)

N, D, V = 37, 40, 3001  # three slabs, the last one narrower
ONE_BLOCK = 4 * N * (ROW_BLOCK + SLAB_PADDING)
FP32 = torch.float32


@pytest.fixture
def subject(isa_subject: Subject) -> Subject:
    """The kernel at each instruction set."""
    return isa_subject


@pytest.fixture
def taken(columns_of_calls: Callable[[str], list[int]]) -> list[int]:
    """The columns of a slab of each call that is computed in this way."""
    return columns_of_calls("compute_in_one_pass")


def frozen(inputs: Inputs, reduction: str = "none", **settings: Any) -> Outcome:
    """The loss, and the gradient of the hidden states alone."""
    hidden = inputs.hidden.detach().clone().requires_grad_()
    loss = linear_cross_entropy(
        hidden,
        inputs.weight,
        inputs.labels,
        **inputs.arguments(),
        reduction=reduction,
        implementation="cpu",
        **{"chunk_bytes": ONE_BLOCK, **settings},
    )
    (gradient,) = torch.autograd.grad(scalar_of(loss), [hidden])
    return Outcome(loss.detach().double(), {"hidden": gradient.double()})


def of_hidden(outcome: Outcome) -> Outcome:
    return Outcome(outcome.loss, {"hidden": outcome.gradients["hidden"]})


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"z_loss": 0.1}, {"softcap": 5.0, "logit_scale": 0.5}, {"logit_scale": 2.0}],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_against_float64(
    subject: Subject, taken: list[int], settings: dict[str, float], reduction: str
) -> None:
    inputs = make_inputs(N, D, V, bias=True, class_weight=True, token_weights=True, spread=2.0)
    ours = frozen(inputs, reduction, **settings)
    eager, exact = (of_hidden(one(inputs, reduction, **settings)) for one in (plain, truth))
    assert_exact_enough(ours, eager, exact, FP32)
    assert not ours.gradients["hidden"][inputs.labels == IGNORE].any()
    assert set(taken) == {ROW_BLOCK}


@pytest.mark.parametrize("vocab", [ROW_BLOCK + 1, 2 * ROW_BLOCK, 2 * ROW_BLOCK + 17])
def test_odd_last_slabs(subject: Subject, taken: list[int], vocab: int) -> None:
    inputs = make_inputs(N, D, vocab, masked=0.0, spread=4.0)
    labels = inputs.labels.clone()
    labels[:6] = torch.tensor([0, ROW_BLOCK - 1, ROW_BLOCK, vocab - 1, vocab - 1, 1])
    inputs = changed(inputs, labels=labels)
    assert_exact_enough(
        frozen(inputs), of_hidden(plain(inputs, "none")), of_hidden(truth(inputs, "none")), FP32
    )
    assert set(taken) == {ROW_BLOCK}


def test_maxima_in_every_slab(subject: Subject, taken: list[int]) -> None:
    """The largest logits come first, in the middle and last, and far above the others."""
    logits = torch.randn(6, V, generator=torch.Generator().manual_seed(0))
    for row, (column, height) in enumerate(
        [(3, 90.0), (1500, 90.0), (3000, 90.0), (2999, 1e4), (5, -1e4), (1024, 200.0)]
    ):
        logits[row, column] = height
    labels = torch.tensor([3, 0, 3000, 7, 5, 1025])
    inputs = Inputs(torch.eye(6), logits.t().contiguous(), labels)
    room = {"chunk_bytes": 4 * 6 * (ROW_BLOCK + SLAB_PADDING)}
    ours, exact = frozen(inputs, **room), of_hidden(truth(inputs, "none"))
    assert_exact_enough(ours, of_hidden(plain(inputs, "none")), exact, FP32)
    assert set(taken) == {ROW_BLOCK}


def test_rows_in_several_passes(
    subject: Subject, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(N, D, V, masked=0.0, bias=True)
    whole = frozen(inputs)
    monkeypatch.setattr(one_pass, "pass_rows", lambda num_rows: 16)
    parts = frozen(inputs)
    assert set(taken) == {ROW_BLOCK}
    assert error(parts.loss, whole.loss) < 1e-6
    assert error(parts.gradients["hidden"], whole.gradients["hidden"]) < 1e-6


def test_statistics(subject: Subject, taken: list[int]) -> None:
    """Entropy and accuracy come along; without a gradient the logits are made once, too."""
    inputs = make_inputs(N, D, V, spread=3.0)
    keep = inputs.labels != IGNORE
    likely = inputs.hidden @ inputs.weight.t()
    labels = torch.where(keep & (torch.arange(N) % 2 == 0), likely.argmax(-1), inputs.labels)
    logits = inputs.hidden.double() @ inputs.weight.double().t()
    log_p = logits.log_softmax(-1)
    for hidden in (inputs.hidden.clone().requires_grad_(), inputs.hidden):
        _, found = linear_cross_entropy(
            hidden, inputs.weight, labels, return_stats=True, implementation="cpu",
            chunk_bytes=ONE_BLOCK,
        )  # fmt: skip
        entropy = -(log_p.exp() * log_p).sum(-1)
        assert error(found.entropy[keep], entropy[keep]) < 1e-6
        assert error(found.logsumexp[keep], logits.logsumexp(-1)[keep]) < 1e-6
        assert torch.equal(found.correct[keep], (logits.argmax(-1) == labels)[keep])
    assert set(taken) == {ROW_BLOCK}


def test_no_gradient_where_there_is_none_to_make(subject: Subject, taken: list[int]) -> None:
    inputs = make_inputs(N, D, V)
    with torch.no_grad():
        loss = linear_cross_entropy(
            inputs.hidden, inputs.weight, inputs.labels, reduction="none",
            implementation="cpu", chunk_bytes=ONE_BLOCK,
        )  # fmt: skip
    assert error(loss, truth(inputs, "none").loss) < 1e-6
    assert set(taken) == {ROW_BLOCK}


def test_slabs_of_several_blocks(subject: Subject, taken: list[int]) -> None:
    inputs = make_inputs(N, D, V + 2 * ROW_BLOCK, masked=0.0, spread=3.0)
    room = 4 * N * (3 * ROW_BLOCK + SLAB_PADDING)
    eager, exact = (of_hidden(one(inputs, "none")) for one in (plain, truth))
    assert_exact_enough(frozen(inputs, chunk_bytes=room), eager, exact, FP32)
    assert set(taken) == {3 * ROW_BLOCK}


def test_a_weight_whose_rows_lie_apart(subject: Subject, taken: list[int]) -> None:
    inputs = make_inputs(N, D, V)
    wide = torch.full((V, D + 7), math.nan)
    wide[:, :D] = inputs.weight
    apart = frozen(changed(inputs, weight=wide[:, :D]))
    assert error(apart.gradients["hidden"], frozen(inputs).gradients["hidden"]) < 1e-6
    assert set(taken) == {ROW_BLOCK}


def test_whatever_torch_makes_by_default(subject: Subject, taken: list[int]) -> None:
    inputs = make_inputs(N, D, V)
    usual = frozen(inputs, "sum")
    for dtype in (torch.float64, torch.bfloat16):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            again = frozen(inputs, "sum")
        finally:
            torch.set_default_dtype(before)
        assert torch.equal(again.gradients["hidden"], usual.gradients["hidden"])
    assert set(taken) == {ROW_BLOCK}


@pytest.mark.parametrize("label", [-7, V, V + 5, 2**40])
def test_a_label_outside_the_vocabulary_is_a_row_of_nan(subject: Subject, label: int) -> None:
    """The public function refuses it; beneath, it must not be read."""
    inputs = make_inputs(4, D, V, masked=0.0)
    labels = torch.tensor([0, label, V - 1, 5])
    problem = Problem(hidden=inputs.hidden, weight=inputs.weight, labels=labels)
    upstream = Upstream(logprob=torch.ones(4))
    found = one_pass.compute_in_one_pass(problem, upstream, Wanted(hidden=True), ROW_BLOCK)
    assert found.logprob.isnan().tolist() == [False, True, False, False]
    assert found.grad_hidden is not None
    assert found.grad_hidden.isnan().all(-1).tolist() == [False, True, False, False]


def test_what_is_not_served_is_refused(subject: Subject) -> None:
    inputs = make_inputs(4, D, V, masked=0.0)
    problem = Problem(hidden=inputs.hidden, weight=inputs.weight, labels=inputs.labels)
    upstream = Upstream(logprob=torch.ones(4), entropy=torch.ones(4))
    with pytest.raises(RuntimeError, match="ds_train_slab_cpu"):
        one_pass.compute_in_one_pass(problem, upstream, Wanted(hidden=True), ROW_BLOCK)


def test_sizes_are_those_of_the_kernels() -> None:
    header = (Path(native.__file__).parents[2] / "csrc" / "rows.h").read_text()
    assert f"DS_TRAIN_ROW_BLOCK = {ROW_BLOCK}," in header
    assert f"DS_TRAIN_ROW_STATE = {ROW_STATE} " in header


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_row_stays_alone(subject: Subject, taken: list[int], bad: float) -> None:
    inputs = make_inputs(N, D, V, masked=0.0)
    hidden = inputs.hidden.clone()
    hidden[3, 5] = bad
    found, alone = frozen(changed(inputs, hidden=hidden)), frozen(inputs)
    others = torch.arange(N) != 3
    assert found.loss[3].isnan() and found.gradients["hidden"][3].isnan().all()
    assert torch.equal(found.loss[others], alone.loss[others])
    assert torch.equal(found.gradients["hidden"][others], alone.gradients["hidden"][others])
    assert set(taken) == {ROW_BLOCK}


def biased(values: dict[int, float], labels: list[int], elsewhere: float = 0.0) -> Outcome:
    """The outcome of rows whose logits are a bias."""
    bias = torch.full((V,), elsewhere)
    for column, value in values.items():
        bias[column] = value
    inputs = make_inputs(len(labels), D, V, masked=0.0)
    zero = torch.zeros_like(inputs.hidden)
    inputs = changed(inputs, hidden=zero, labels=torch.tensor(labels), bias=bias)
    return frozen(inputs, chunk_bytes=4 * len(labels) * (ROW_BLOCK + SLAB_PADDING))


@pytest.mark.parametrize("column", [0, 1500, V - 1])
def test_infinite_logits(subject: Subject, taken: list[int], column: int) -> None:
    assert biased({column: math.inf}, [5, column]).loss.isnan().all()
    gone = biased({column: -math.inf}, [5, 6])
    assert gone.loss.tolist() == pytest.approx([math.log(V - 1)] * 2, rel=1e-6)
    assert gone.gradients["hidden"].isfinite().all()
    assert biased({column: -math.inf}, [column, 6]).loss[0] == math.inf
    alone = biased({column: 1.0}, [column, 5], elsewhere=-math.inf)
    assert alone.loss.tolist() == [0.0, math.inf]
    assert biased({}, [5, column], elsewhere=-math.inf).loss.isnan().all()
    assert set(taken) == {ROW_BLOCK}


def test_the_same_bits_again(subject: Subject, taken: list[int]) -> None:
    inputs = make_inputs(N, D, V)
    one, two = frozen(inputs), frozen(inputs)
    assert torch.equal(one.loss, two.loss)
    assert torch.equal(one.gradients["hidden"], two.gradients["hidden"])
    assert set(taken) == {ROW_BLOCK}


def test_logprobs(subject: Subject, taken: list[int]) -> None:
    """Known to the loss only when its gradient comes back."""
    inputs = make_inputs(N, D, V, masked=0.0, spread=2.0)
    found: list[Tensor] = []
    for dtype, name in ((FP32, "cpu"), (torch.float64, "reference")):
        hidden = inputs.hidden.to(dtype).clone().requires_grad_()
        weight = inputs.weight.to(dtype)
        logprob = linear_logprobs(
            hidden, weight, inputs.labels, implementation=name, chunk_bytes=ONE_BLOCK
        )
        assert isinstance(logprob, Tensor)
        found += torch.autograd.grad(logprob.square().sum(), [hidden])
    assert error(*found) < 2e-6
    assert ROW_BLOCK in taken


@pytest.mark.parametrize(
    ("dtype", "label_smoothing"), [(FP32, 0.1), (torch.bfloat16, 0.0), (torch.float16, 0.0)]
)
def test_what_takes_rows_of_whole_logits(
    subject: Subject, taken: list[int], dtype: torch.dtype, label_smoothing: float
) -> None:
    frozen(make_inputs(N, D, V, dtype), "sum", label_smoothing=label_smoothing)
    assert not taken


def test_a_bias_that_trains_takes_rows_of_whole_logits(subject: Subject, taken: list[int]) -> None:
    inputs = make_inputs(N, D, V, bias=True)
    assert inputs.bias is not None
    bias = inputs.bias.clone().requires_grad_()
    linear_cross_entropy(
        inputs.hidden, inputs.weight, inputs.labels, bias=bias, reduction="sum",
        implementation="cpu", chunk_bytes=ONE_BLOCK,
    ).backward()  # fmt: skip
    exact = truth(inputs)
    assert bias.grad is not None
    assert error(bias.grad, exact.gradients["bias"] / 0.7) < 1e-6
    assert not taken


def test_a_gradient_of_the_entropy_takes_rows_of_whole_logits(
    subject: Subject, taken: list[int]
) -> None:
    inputs = make_inputs(N, D, V, masked=0.0)
    hidden = inputs.hidden.clone().requires_grad_()
    _, entropy = linear_logprobs(
        hidden, inputs.weight, inputs.labels, return_entropy=True, implementation="cpu",
        chunk_bytes=ONE_BLOCK,
    )  # fmt: skip
    forward = len(taken)
    entropy.sum().backward()
    assert len(taken) == forward


def test_columns_of_a_slab() -> None:
    assert pass_columns(512, 32768, 4, None) == 2048
    assert pass_columns(4096, 32768, 4, None) == ROW_BLOCK
    assert pass_columns(100_000, 32768, 4, None) == ROW_BLOCK
    assert [pass_rows(n) for n in (1, PASS_ROWS, PASS_ROWS + 1)] == [
        1,
        PASS_ROWS,
        PASS_ROWS // 2 + 1,
    ]
    assert SLAB_BYTES >= 4 * 512 * 2048
    assert pass_columns(10, 32768, 4, None) is None  # all logits are smaller than a slab
    assert pass_columns(512, ROW_BLOCK, 4, None) is None
    assert pass_columns(512, 32768, 4, 2**20) is None  # not one block of columns fits
