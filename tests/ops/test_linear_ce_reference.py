"""The reference is the definition: against plain Python, torch's cross-entropy and gradcheck.

Everything else is compared with float64 arithmetic; here it is shown that this one is right.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_cases import IGNORE, Inputs, error, make_inputs, plain_losses
from torch import Tensor

from ds_train.ops import linear_cross_entropy, linear_logprobs

FP64 = torch.float64
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.2},
    "all-smoothing": {"label_smoothing": 1.0},
    "z-loss": {"z_loss": 0.05},
    "softcap": {"softcap": 1.5},
    "scale": {"logit_scale": 0.4},
    "bias": {"bias": True},
    "class-weight": {"class_weight": True},
    "class-weight-smoothing": {"class_weight": True, "label_smoothing": 0.3},
    "token-weights": {"token_weights": True},
    "everything": {
        "label_smoothing": 0.1,
        "z_loss": 0.02,
        "softcap": 2.0,
        "logit_scale": 0.7,
        "bias": True,
        "class_weight": True,
        "token_weights": True,
    },
}
TENSORS = ("bias", "class_weight", "token_weights")


def case(name: str, n: int = 6, d: int = 4, v: int = 7) -> tuple[Inputs, dict[str, Any]]:
    settings = SETTINGS[name]
    tensors = {key: value for key, value in settings.items() if key in TENSORS}
    inputs = make_inputs(n, d, v, FP64, seed=3, **tensors)
    return inputs.to(FP64), {key: value for key, value in settings.items() if key not in TENSORS}


def loss_of(
    inputs: Inputs, reduction: str = "sum", implementation: str = "reference", **settings: Any
) -> Tensor:
    """Without `Inputs.to`, which would cut the graph."""
    return linear_cross_entropy(
        inputs.hidden,
        inputs.weight,
        inputs.labels,
        **inputs.arguments(),
        reduction=reduction,
        implementation=implementation,
        **settings,
    )


def in_plain_python(
    inputs: Inputs,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> list[float]:
    """The definition, number by number."""
    ones = torch.ones(inputs.weight.shape[0])
    c = (ones if inputs.class_weight is None else inputs.class_weight).tolist()
    b = (ones * 0 if inputs.bias is None else inputs.bias).tolist()
    losses = []
    for i, label in enumerate(inputs.labels.tolist()):
        if label == IGNORE:
            losses.append(0.0)
            continue
        x = inputs.hidden[i].tolist()
        z = [
            logit_scale * (math.fsum(p * q for p, q in zip(x, w, strict=True)) + bias)
            for w, bias in zip(inputs.weight.tolist(), b, strict=True)
        ]
        if softcap is not None:
            z = [softcap * math.tanh(one / softcap) for one in z]
        lse = math.log(math.fsum(map(math.exp, z)))
        smooth = math.fsum(w * (lse - one) for w, one in zip(c, z, strict=True)) / len(z)
        loss = (1 - label_smoothing) * c[label] * (lse - z[label])
        loss += label_smoothing * smooth + z_loss * lse**2
        t = 1.0 if inputs.token_weights is None else inputs.token_weights[i].item()
        losses.append(t * loss)
    return losses


@pytest.mark.parametrize("name", SETTINGS)
def test_reference_is_the_definition(name: str) -> None:
    inputs, settings = case(name)
    expected = in_plain_python(inputs, **settings)
    assert loss_of(inputs, "none", **settings).tolist() == pytest.approx(expected, rel=1e-13)
    # and so is what the other tests take for the truth
    assert plain_losses(inputs, **settings).tolist() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_reference_is_torchs_cross_entropy(
    reduction: str, smoothing: float, weighted: bool
) -> None:
    inputs, _ = case("class-weight" if weighted else "plain")
    got = loss_of(inputs, reduction, label_smoothing=smoothing)
    expected = F.cross_entropy(
        inputs.hidden @ inputs.weight.t(),
        inputs.labels,
        inputs.class_weight,
        reduction=reduction,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_gradcheck(name: str, reduction: str, implementation: str) -> None:
    inputs, settings = case(name)
    leaves = [tensor.requires_grad_() for tensor in inputs.leaves().values()]
    chunk = {} if implementation == "reference" else {"chunk_bytes": 1}

    def function(*_: Tensor) -> Tensor:
        return loss_of(inputs, reduction, implementation, **settings, **chunk)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_gradcheck_with_the_others_frozen(
    trained: str, reduction: str, implementation: str
) -> None:
    inputs, settings = case("everything")
    leaf = inputs.leaves()[trained].requires_grad_()

    def function(_: Tensor) -> Tensor:
        return loss_of(inputs, reduction, implementation, **settings)

    assert torch.autograd.gradcheck(function, (leaf,))


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck_of_logprobs_and_entropy(implementation: str, softcap: float | None) -> None:
    inputs, _ = case("bias")
    leaves = [tensor.requires_grad_() for tensor in inputs.leaves().values()]

    def function(*_: Tensor) -> tuple[Tensor, Tensor]:
        return linear_logprobs(
            inputs.hidden, inputs.weight, inputs.labels, bias=inputs.bias, softcap=softcap,
            logit_scale=0.8, return_entropy=True, implementation=implementation,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, leaves)


def test_statistics_are_their_definitions() -> None:
    inputs, _ = case("bias")
    _, stats = loss_of(inputs, return_stats=True)
    logits = F.linear(inputs.hidden, inputs.weight, inputs.bias)
    keep = inputs.labels != IGNORE
    distribution = torch.distributions.Categorical(logits=logits[keep])
    expected = {
        "logprob": distribution.log_prob(inputs.labels[keep]),
        "logsumexp": logits[keep].logsumexp(-1),
        "entropy": distribution.entropy(),
        "correct": logits[keep].argmax(-1) == inputs.labels[keep],
    }
    for name, value in expected.items():
        got = getattr(stats, name)
        assert not got.requires_grad
        assert not got[~keep].any(), name
        assert error(got[keep], value) < 1e-13, name


def test_chunked_in_float64_is_the_reference() -> None:
    inputs, settings = case("everything", n=29, d=5, v=31)
    one = loss_of(inputs, "none", "chunked", chunk_bytes=4000, **settings)
    assert error(one, loss_of(inputs, "none", **settings)) < 1e-14
