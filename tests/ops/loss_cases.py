"""Inputs for the fused loss, what it must be in float64, and how far eager torch is from that.

The truth is written down here once more, without a line of `ds_train.ops`. It takes the very values
that the implementations get (already rounded to bf16, say), so that an error is one of arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ds_train.ops import linear_cross_entropy

IGNORE = -100
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DTYPE_NAMES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Subject:
    """An implementation on a device; for `cpu` with the instruction set that it may use."""

    implementation: str
    device: str = "cpu"
    isa: str | None = None

    def __str__(self) -> str:
        where = f"-{self.isa}" if self.isa else ""
        return self.implementation + where + ("" if self.device == "cpu" else f"@{self.device}")


@dataclass(frozen=True)
class Inputs:
    """Tensors of one call, on any device."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    bias: Tensor | None = None
    class_weight: Tensor | None = None
    token_weights: Tensor | None = None

    def to(self, *args: Any) -> Inputs:
        """Everything on another device or in another dtype; labels stay integers."""

        def moved(name: str, tensor: Tensor | None) -> Tensor | None:
            if tensor is None or (name == "labels" and isinstance(args[0], torch.dtype)):
                return tensor
            return tensor.detach().to(*args)

        return Inputs(**{name: moved(name, tensor) for name, tensor in vars(self).items()})

    def leaves(self) -> dict[str, Tensor]:
        """The tensors that gradients are asked for."""
        named = {"hidden": self.hidden, "weight": self.weight, "bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def arguments(self) -> dict[str, Tensor | None]:
        """The optional tensors, by keyword."""
        return {name: vars(self)[name] for name in ("bias", "class_weight", "token_weights")}


def make_inputs(
    n: int = 37,
    d: int = 16,
    v: int = 53,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    masked: float = 0.3,
    spread: float = 1.0,
    bias: bool = False,
    class_weight: bool = False,
    token_weights: bool = False,
) -> Inputs:
    """Random inputs; logits have a standard deviation of about `spread`."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, v, (n,), generator=g)
    labels[torch.rand(n, generator=g) < masked] = IGNORE
    # zeros among the weights: the value that is most easily treated as "not given"
    classes = torch.rand(v, generator=g).mul(2).where(torch.rand(v, generator=g) > 0.2, 0.0)
    tokens = torch.rand(n, generator=g).mul(2).where(torch.rand(n, generator=g) > 0.2, 0.0)
    return Inputs(
        hidden=torch.randn(n, d, generator=g).to(dtype),
        weight=(torch.randn(v, d, generator=g) * (spread / d**0.5)).to(dtype),
        labels=labels,
        bias=torch.randn(v, generator=g).to(dtype) if bias else None,
        class_weight=classes if class_weight else None,
        token_weights=tokens if token_weights else None,
    )


def plain_logits(inputs: Inputs, logit_scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """Logits of all rows: the product in the inputs' dtype, the rest in fp32 (or fp64)."""
    logits = F.linear(inputs.hidden, inputs.weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if inputs.bias is not None:
        logits = logits + inputs.bias
    logits = logits * logit_scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def plain_losses(
    inputs: Inputs,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = IGNORE,
    **transform: Any,
) -> Tensor:
    """Loss of each row by torch's own cross-entropy over whole logits; zero where ignored."""
    logits = plain_logits(inputs, **transform)
    weight = None if inputs.class_weight is None else inputs.class_weight.to(logits.dtype)
    losses = F.cross_entropy(
        logits,
        inputs.labels,
        weight,
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    keep = inputs.labels != ignore_index
    if z_loss:
        losses = losses + torch.where(keep, z_loss * logits.logsumexp(-1).square(), 0.0)
    return losses if inputs.token_weights is None else losses * inputs.token_weights


def plain_denominator(inputs: Inputs, ignore_index: int = IGNORE) -> Tensor:
    """What `mean` divides by: token weight times class weight, over supervised rows."""
    keep = inputs.labels != ignore_index
    weights = keep.double()
    if inputs.token_weights is not None:
        weights = weights * inputs.token_weights
    if inputs.class_weight is not None:
        weights = weights * inputs.class_weight[inputs.labels.where(keep, 0)]
    return weights.sum()


@dataclass(frozen=True)
class Outcome:
    """Losses of the rows or their sum or mean, and the gradients, all in fp64 on the CPU."""

    loss: Tensor
    gradients: dict[str, Tensor]


def upstream_of(n: int, seed: int = 5) -> Tensor:
    """A gradient for each row, of both signs; none of them 1."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) + 0.1


def _outcome(loss: Tensor, scalar: Tensor, leaves: dict[str, Tensor]) -> Outcome:
    gradients = torch.autograd.grad(scalar, list(leaves.values()))
    kept = {name: g.double().cpu() for name, g in zip(leaves, gradients, strict=True)}
    return Outcome(loss.detach().double().cpu(), kept)


def _reduced(losses: Tensor, inputs: Inputs, reduction: str, ignore_index: int) -> Tensor:
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    return total / plain_denominator(inputs, ignore_index).to(total.dtype)


def scalar_of(loss: Tensor) -> Tensor:
    """A function of the loss whose gradient is not 1 and, per row, not constant."""
    if loss.dim() == 0:
        return loss * 0.7
    return (loss.flatten() * upstream_of(loss.numel()).to(loss)).sum()


def plain(inputs: Inputs, reduction: str = "sum", **settings: Any) -> Outcome:
    """The whole thing by autograd over whole logits, in the dtype of the inputs."""
    fresh = Inputs(**{**vars(inputs), **_requiring(inputs)})
    losses = plain_losses(fresh, **settings)
    loss = _reduced(losses, inputs, reduction, settings.get("ignore_index", IGNORE))
    return _outcome(loss, scalar_of(loss), fresh.leaves())


def truth(inputs: Inputs, reduction: str = "sum", **settings: Any) -> Outcome:
    """The same in float64 on the CPU."""
    return plain(inputs.to("cpu").to(torch.float64), reduction, **settings)


def fused(subject: Subject, inputs: Inputs, reduction: str = "sum", **settings: Any) -> Outcome:
    """The same by the function under test."""
    inputs = inputs.to(subject.device)
    fresh = Inputs(**{**vars(inputs), **_requiring(inputs)})
    loss = linear_cross_entropy(
        fresh.hidden,
        fresh.weight,
        fresh.labels,
        **fresh.arguments(),
        reduction=reduction,
        implementation=subject.implementation,
        **settings,
    )
    return _outcome(loss, scalar_of(loss), fresh.leaves())


def _requiring(inputs: Inputs) -> dict[str, Tensor]:
    return {
        # a view stays one, as its layout may be what is tested
        name: tensor.detach().requires_grad_()
        for name, tensor in inputs.leaves().items()
    }


def error(got: Tensor, exact: Tensor) -> float:
    """Norm of the difference, relative to the norm."""
    got, exact = got.detach().double().cpu(), exact.detach().double().cpu()
    return ((got - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def assert_exact_enough(
    ours: Outcome,
    eager: Outcome,
    exact: Outcome,
    dtype: torch.dtype,
    slack: float = 1.0,
    terms: Callable[[str], float] | None = None,
) -> None:
    """At most 1.5 times as far from the truth as eager torch at the same precision.

    Where eager happens to be right to the last bit, a rounding error (of the gradients in `dtype`,
    of the loss in fp32) is allowed; `slack` times that where so few numbers are summed up that
    chance decides. Given `terms`, each of three roundings may err so much: that of a gradient's
    terms, whose size `terms` says, of their sum, and of the sum times the upstream gradient.
    """
    fp32 = torch.finfo(torch.float32).eps
    floor = slack * (8 * fp32 if dtype == torch.float32 else torch.finfo(dtype).eps / 2)
    # the errors of a sum of rounded logits may cancel by chance, in eager or in ours
    from_16_bit = exact.loss.dim() == 0 and dtype != torch.float32
    compare = {"loss": (ours.loss, eager.loss, exact.loss, 2e-3 if from_16_bit else 8 * fp32)}
    for name, gradient in exact.gradients.items():
        compare[name] = (ours.gradients[name], eager.gradients[name], gradient, floor)
    for name, (got, theirs, correct, allowed) in compare.items():
        assert got.shape == correct.shape, name
        limit = max(1.5 * error(theirs, correct), allowed)
        found = error(got, correct)
        if found > limit and terms is not None and name != "loss":
            limit = max(limit, floor * (2 + terms(name)))
        assert found <= limit, f"{name}: error {found:.2e}, and {limit:.2e} is allowed"


def size_of_terms(
    inputs: Inputs, exact: Outcome, name: str, reduction: str, **settings: Any
) -> float:
    """Root of the sum of the squared terms that a gradient is the sum of, relative to its norm.

    Rounding each term by itself, by u of its size, changes the sum by about u times this: 1 for
    terms of random signs, and large where they cancel, as the two columns of a tiny vocabulary do.
    """
    inputs = inputs.to("cpu").to(torch.float64)
    bias = torch.zeros(()) if inputs.bias is None else inputs.bias
    shape = (*inputs.hidden.shape[:-1], inputs.weight.shape[0])
    whole = changed(inputs, bias=bias.to(torch.float64).expand(shape).clone())
    dz = plain(whole, reduction, **settings).gradients["bias"].flatten(0, -2).square()
    x, w = inputs.hidden.flatten(0, -2).square(), inputs.weight.square()
    squares = {"hidden": lambda: dz @ w, "weight": lambda: dz.t() @ x, "bias": lambda: dz}[name]()
    return (squares.sum().sqrt() / exact.gradients[name].norm().clamp_min(1e-30)).item()


def check(
    subject: Subject,
    inputs: Inputs,
    reduction: str = "sum",
    *,
    extra: dict[str, Any] | None = None,
    slack: float = 1.0,
    few_numbers: bool = False,
    **settings: Any,
) -> Outcome:
    """The fused loss against eager at the same precision; `extra` goes to the fused one only.

    `few_numbers`: so few that their roundings neither average out nor hide behind eager's.
    """
    ours = fused(subject, inputs, reduction, **settings, **(extra or {}))
    eager = plain(inputs.to(subject.device), reduction, **settings)
    exact = truth(inputs, reduction, **settings)

    def terms(name: str) -> float:
        return size_of_terms(inputs, exact, name, reduction, **settings)

    assert_exact_enough(
        ours, eager, exact, inputs.hidden.dtype, slack, terms if few_numbers else None
    )
    ignored = inputs.labels.flatten() == settings.get("ignore_index", IGNORE)
    assert not ours.gradients["hidden"].flatten(0, -2)[ignored].any()
    return ours


def changed(inputs: Inputs, **changes: Any) -> Inputs:
    """A copy with other tensors."""
    return replace(inputs, **changes)
