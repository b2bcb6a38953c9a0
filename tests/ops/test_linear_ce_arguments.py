"""What can't be right is an error that says what is wrong, what is needed and where it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ds_train.ops import linear_cross_entropy, linear_logprobs, native

N, D, V = 6, 4, 10


def good() -> dict[str, Any]:
    """Arguments that are right."""
    return {
        "hidden": torch.ones(N, D),
        "weight": torch.ones(V, D),
        "labels": torch.tensor([0, 1, -100, 3, 4, 9]),
    }


def labels_with(value: int) -> Tensor:
    labels = good()["labels"]
    labels[3] = value
    return labels


def partitioned() -> Tensor:
    """What is left of a parameter under ZeRO-3 outside its module."""
    parameter = nn.Parameter(torch.empty(0))
    parameter.ds_status = "NOT_AVAILABLE"  # type: ignore[attr-defined]
    return parameter


class DTensor(Tensor):
    """Has the name of torch's distributed tensor, and its kind of nature."""


def quantised() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(V, D), 0.1, 0, torch.qint8)


def peft_layer() -> nn.Module:
    model = get_peft_model(nn.Sequential(nn.Linear(D, V)), LoraConfig(target_modules=["0"], r=2))  # type: ignore[arg-type]
    return model.base_model.model[0]  # type: ignore[index, return-value]


PARTITIONED = (
    "weight is partitioned by ZeRO-3, and empty here: call through the module that owns it, or "
    "under deepspeed.zero.GatheredParameters"
)
INTEGERS = "integers are needed, as class indices"
WEIGHT_SHAPE = "[vocabulary, hidden size] is needed, of one class up"
HIDDEN_SHAPE = "[..., hidden size] of two dimensions or more is needed"
DENSE = "a dense tensor with values is needed"
DTYPE = "one of fp32, bf16, fp16 is needed"
WIDTHS = "their last dimensions, the hidden size, have to be equal and not 0"

VALUE_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"hidden": torch.ones(D)}, f"hidden is [4]: {HIDDEN_SHAPE}"),
    ({"hidden": torch.tensor(1.0)}, f"hidden is []: {HIDDEN_SHAPE}"),
    ({"hidden": torch.ones(N, 5)}, f"hidden is [6, 5] and weight [10, 4]: {WIDTHS}"),
    (
        {"hidden": torch.ones(N, 0), "weight": torch.ones(V, 0)},
        f"hidden is [6, 0] and weight [10, 0]: {WIDTHS}",
    ),
    ({"weight": torch.ones(V)}, f"weight is [10]: {WEIGHT_SHAPE}"),
    ({"weight": torch.ones(2, V, D)}, f"weight is [2, 10, 4]: {WEIGHT_SHAPE}"),
    ({"weight": torch.ones(0, D)}, f"weight is [0, 4]: {WEIGHT_SHAPE}"),
    ({"weight": partitioned()}, PARTITIONED),
    ({"bias": partitioned()}, PARTITIONED.replace("weight", "bias")),
    (
        {"labels": torch.zeros(5, dtype=torch.int64)},
        "labels are [5] and hidden [6, 4]: one label a row is needed",
    ),
    (
        {"labels": torch.zeros(N, 1, dtype=torch.int64)},
        "labels are [6, 1] and hidden [6, 4]: one label a row is needed",
    ),
    ({"bias": torch.ones(9)}, "bias is [9]: [10] is needed, one a class"),
    ({"bias": torch.ones(1, V)}, "bias is [1, 10]: [10] is needed, one a class"),
    ({"class_weight": torch.ones(D)}, "class_weight is [4]: [10] is needed, one a class"),
    ({"token_weights": torch.ones(V)}, "token_weights are [10] and labels [6]: one a label"),
    ({"class_weight": -torch.ones(V)}, "class_weight must be 0 or more, and not NaN"),
    ({"class_weight": torch.full((V,), torch.nan)}, "class_weight must be 0 or more, and not NaN"),
    ({"token_weights": -torch.ones(N)}, "token_weights must be 0 or more, and not NaN"),
    (
        {"token_weights": torch.full((N,), torch.nan)},
        "token_weights must be 0 or more, and not NaN",
    ),
    (
        {"token_weights": torch.ones(N, requires_grad=True)},
        "token_weights requires a gradient, and gets none: pass token_weights.detach()",
    ),
    (
        {"class_weight": torch.ones(V, requires_grad=True)},
        "class_weight requires a gradient, and gets none: pass class_weight.detach()",
    ),
    *(
        (
            {"labels": labels_with(value)},
            f"labels: {value} at position 3 is outside the vocabulary of 10; a position that isn't "
            "learned from has the label -100 (ignore_index)",
        )
        for value in (10, -1, 2**40)
    ),
    (
        {"labels": labels_with(-100), "ignore_index": -1},
        "labels: -100 at position 2 is outside the vocabulary of 10; a position that isn't learned "
        "from has the label -1 (ignore_index)",
    ),
    ({"reduction": "average"}, "reduction 'average': one of sum, mean, none"),
    ({"reduction": None}, "reduction None: one of sum, mean, none"),
    ({"label_smoothing": -0.1}, "label_smoothing -0.1: from 0 to 1"),
    ({"label_smoothing": 1.5}, "label_smoothing 1.5: from 0 to 1"),
    ({"label_smoothing": float("nan")}, "label_smoothing nan: from 0 to 1"),
    ({"z_loss": -1.0}, "z_loss -1.0: 0 or more"),
    ({"z_loss": float("inf")}, "z_loss inf: 0 or more"),
    ({"softcap": 0.0}, "softcap 0.0: above 0, or None for no cap"),
    ({"softcap": -30.0}, "softcap -30.0: above 0, or None for no cap"),
    ({"softcap": float("inf")}, "softcap inf: above 0, or None for no cap"),
    ({"logit_scale": 0.0}, "logit_scale 0.0: above 0; it is 1/temperature"),
    ({"logit_scale": -1.0}, "logit_scale -1.0: above 0; it is 1/temperature"),
    ({"logit_scale": float("nan")}, "logit_scale nan: above 0; it is 1/temperature"),
    ({"chunk_bytes": 0}, "chunk_bytes 0: above 0, or None to have it chosen"),
    ({"chunk_bytes": -5}, "chunk_bytes -5: above 0, or None to have it chosen"),
    ({"num_supervised": -1}, "num_supervised -1: from 0 to the 6 labels"),
    ({"num_supervised": 7}, "num_supervised 7: from 0 to the 6 labels"),
    (
        {"num_supervised": 6},
        "num_supervised is 6, and 5 labels differ from ignore_index; leave it out to have them "
        "counted",
    ),
    (
        {"implementation": "triton"},
        "implementation 'triton': one of auto, reference, chunked, cpu, cuda",
    ),
    (
        {"implementation": "cuda"},
        "implementation 'cuda' needs tensors on cuda, and they are on cpu; use 'auto'",
    ),
]

TYPE_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"hidden": [[1.0]]}, "hidden is a list: a tensor is needed"),
    ({"weight": None}, "weight is a NoneType: a tensor is needed"),
    ({"labels": [0] * N}, "labels is a list: a tensor is needed"),
    ({"bias": 0.0}, "bias is a float: a tensor is needed"),
    ({"weight": nn.Linear(D, V)}, "weight is a Linear: a tensor is needed; pass its weight"),
    ({"weight": peft_layer()}, "weight is a Linear: a tensor is needed; pass its weight"),
    (
        {"weight": torch.ones(V, D).as_subclass(DTensor)},
        "weight is a DTensor: a whole tensor is needed; gather it first",
    ),
    ({"labels": torch.zeros(N)}, f"labels are torch.float32: {INTEGERS}"),
    ({"labels": torch.zeros(N, dtype=torch.bool)}, f"labels are torch.bool: {INTEGERS}"),
    ({"hidden": torch.ones(N, D, dtype=torch.int64)}, f"hidden is torch.int64: {DTYPE}"),
    ({"weight": torch.ones(V, D, dtype=torch.complex64)}, f"weight is torch.complex64: {DTYPE}"),
    (
        {"weight": torch.ones(V, D).to(torch.float8_e4m3fn)},
        f"weight is torch.float8_e4m3fn: {DTYPE}",
    ),
    ({"class_weight": torch.ones(V, dtype=torch.int32)}, f"class_weight is torch.int32: {DTYPE}"),
    (
        {"weight": torch.ones(V, D, dtype=torch.bfloat16)},
        "hidden is torch.float32 and weight torch.bfloat16: convert one of them, or call under "
        "torch.autocast",
    ),
    ({"weight": torch.ones(V, D).to_sparse()}, f"weight is torch.sparse_coo: {DENSE}"),
    ({"hidden": torch.ones(N, D, device="meta")}, f"hidden is meta: {DENSE}"),
    ({"weight": torch.ones(V, D, device="meta")}, f"weight is meta: {DENSE}"),
    ({"num_supervised": 5.0}, "num_supervised 5.0: an int on the host is needed, or None"),
    (
        {"num_supervised": torch.tensor(5)},
        "num_supervised tensor(5): an int on the host is needed, or None",
    ),
    ({"chunk_bytes": True}, "chunk_bytes True: an int on the host is needed, or None"),
    ({"chunk_bytes": 1e6}, "chunk_bytes 1000000.0: an int on the host is needed, or None"),
    ({"ignore_index": None}, "ignore_index None: an int is needed"),
    ({"ignore_index": True}, "ignore_index True: an int is needed"),
]

ONLY_LOSS = {"reduction", "label_smoothing", "z_loss", "class_weight", "token_weights"}
CASES = [(ValueError, *case) for case in VALUE_ERRORS] + [(TypeError, *c) for c in TYPE_ERRORS]


def name(case: Any) -> str | None:
    return case[:60] if isinstance(case, str) else ""


@pytest.mark.parametrize(("kind", "changes", "message"), CASES, ids=name)
@pytest.mark.parametrize("implementation", ["reference", "chunked", "auto"])
def test_bad_argument(
    kind: type[Exception], changes: dict[str, Any], message: str, implementation: str
) -> None:
    arguments = {"implementation": implementation, **good(), **changes}
    with pytest.raises(kind) as caught:
        linear_cross_entropy(**arguments)
    assert str(caught.value) == f"linear_cross_entropy: {message}"
    if not ONLY_LOSS & changes.keys():
        with pytest.raises(kind) as caught:
            linear_logprobs(**arguments)
        assert str(caught.value) == f"linear_cross_entropy: {message}"


def test_a_quantised_weight() -> None:
    with pytest.raises(TypeError, match=r"^linear_cross_entropy: weight is "):
        linear_cross_entropy(**{**good(), "weight": quantised()})


def test_none_of_the_good_arguments_is_refused() -> None:
    assert linear_cross_entropy(**good()).isfinite()
    assert linear_logprobs(**good()).shape == (N,)


def test_fp64_is_for_torch_only() -> None:
    arguments = {k: v.double() if v.is_floating_point() else v for k, v in good().items()}
    with pytest.raises(ValueError) as caught:
        linear_cross_entropy(**arguments, implementation="cpu")
    assert str(caught.value) == (
        "linear_cross_entropy: implementation 'cpu' has no fp64; use 'reference'"
    )
    for implementation in ("auto", "reference", "chunked"):
        assert linear_cross_entropy(**arguments, implementation=implementation).dtype is (
            torch.float64
        )


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a compiler."""
    missing: Callable[[str], str] = lambda kind: f"{kind} kernels: no C++ compiler here"  # noqa: E731
    monkeypatch.setattr(native, "available", missing)


@pytest.mark.usefixtures("no_kernels")
def test_kernels_that_are_not_there() -> None:
    with pytest.raises(ValueError) as caught:
        linear_cross_entropy(**good(), implementation="cpu")
    assert str(caught.value) == (
        "linear_cross_entropy: implementation 'cpu' is not there: cpu kernels: no C++ compiler "
        "here; use 'auto' or 'chunked'"
    )
    assert linear_cross_entropy(**good()).equal(
        linear_cross_entropy(**good(), implementation="chunked")
    )


def test_two_devices() -> None:
    """A tensor that only says it lies on a GPU does for a check of where tensors lie."""
    with FakeTensorMode():
        there = torch.empty(V, D, device="cuda")
    for name in ("weight", "labels", "bias"):
        with pytest.raises(ValueError) as caught:
            linear_cross_entropy(**{**good(), name: there})
        assert str(caught.value) == (
            f"linear_cross_entropy: {name} is on cuda:0, and hidden on cpu: move one of them"
        )
