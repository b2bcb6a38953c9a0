"""Chunks of logits with every feature, their truth in float64, and how far a kernel may be off.

A kernel computes in fp32 and rounds the gradient to the dtype of the logits. So it may be off by
half a unit of that dtype, and by a small multiple of fp32's unit times the size of what it adds up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ds_train.ops.problem import Problem, Result, Upstream, Wanted, empty_result

FP32 = torch.finfo(torch.float32).eps
TINY = torch.finfo(torch.float32).smallest_normal
FEATURES = ("bias", "class_weight", "scale", "softcap", "logit_sum", "entropy")
GRADIENTS = ("logprob", "logsumexp", "logsumexp_slope", "logit_sum", "entropy")
GUARD = 7.0

Kernel = Callable[[Tensor, Problem, Upstream | None, Result], None]


@dataclass
class Case:
    """One chunk: logits [n, v], a view of memory whose other elements are guards."""

    memory: Tensor
    logits: Tensor
    problem: Problem
    upstream: Upstream | None
    wanted: Wanted

    @property
    def transformed(self) -> bool:
        """Whether logits are rounded on their way to the softmax."""
        problem = self.problem
        return problem.bias is not None or problem.softcap is not None or problem.logit_scale != 1.0

    def run(self, kernel: Kernel) -> tuple[Result, Tensor]:
        """Statistics and gradient (or what became of the logits); checks the guards."""
        memory = self.memory.clone()
        shape, strides = self.logits.shape, self.logits.stride()
        logits = memory.as_strided(shape, strides, self.logits.storage_offset())
        result = empty_result(self.problem, self.wanted)
        kernel(logits, self.problem, self.upstream, result)
        out = logits.clone()
        logits.fill_(GUARD)
        assert (memory == GUARD).all(), "memory outside the rows was written"
        return result, out

    def check(self, kernel: Kernel) -> None:
        """Everything that the kernel gives against the truth."""
        result, out = self.run(kernel)
        assert_right(self, result, out)


def make_case(
    rows: int,
    vocab: int,
    dtype: torch.dtype = torch.float32,
    features: tuple[str, ...] = (),
    gradients: tuple[str, ...] | None = ("logprob",),
    *,
    offset: int = 0,
    padding: int = 0,
    spread: float = 3.0,
    seed: int = 0,
    device: str = "cpu",
    **settings: Any,
) -> Case:
    """Random logits and upstream gradients; `offset` and `padding` in elements unalign the rows."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    stride = vocab + padding
    memory = torch.full((offset + rows * stride + 8,), GUARD, dtype=dtype, device=device)
    logits = memory.as_strided((rows, vocab), (stride, 1), offset)
    logits.copy_((random(rows, vocab) * spread).to(dtype))
    labels = torch.randint(vocab, (rows,), generator=generator)
    problem = Problem(
        hidden=torch.empty(rows, 1, dtype=dtype, device=device),
        weight=torch.empty(vocab, 1, dtype=dtype, device=device),
        labels=labels.to(device),
        bias=random(vocab).to(device) if "bias" in features else None,
        class_weight=random(vocab).abs().to(device) if "class_weight" in features else None,
        logit_scale=0.6 if "scale" in features else 1.0,
        softcap=5.0 if "softcap" in features else None,
    )
    upstream = None
    if gradients is not None:
        upstream = Upstream(**{name: random(rows).to(device) for name in gradients})
    wanted = Wanted(
        hidden=upstream is not None,
        entropy="entropy" in features,
        logit_sum="logit_sum" in features,
        correct=True,
    )
    return Case(memory, logits, replace(problem, **settings), upstream, wanted)


class Truth:
    """Statistics [n] and gradient [n, v] in float64, each with the error that is allowed."""

    def __init__(self, case: Case) -> None:
        """The formulas of problem.py, on the logits as they stand in memory."""
        self.case, self.problem = case, case.problem
        self.cap = self.problem.softcap or 0.0
        self.scale = _fp32(self.problem.logit_scale)
        self.z, self.slope = self._transformed(case.logits.cpu().double())
        n, v = self.z.shape
        weights = self.problem.class_weight
        self.c = torch.ones(v).double() if weights is None else weights.cpu().double()
        labels = self.problem.labels.cpu()
        exists = (labels >= 0) & (labels < v)
        self.y = torch.where(exists, labels, 0)[:, None]
        self.is_label = torch.zeros(n, v, dtype=torch.bool).scatter_(1, self.y, True)
        self.is_masked = self.z == -math.inf
        poisoned = ~exists | (self.z == math.inf).any(1) | self.z.isnan().any(1)
        poisoned |= self.is_masked.all(1)
        self.nan = torch.where(poisoned, math.nan, 0.0)[:, None].double()
        self._softmax()

    def _transformed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bias = 0.0 if self.problem.bias is None else self.problem.bias.cpu().double()
        z = (x + bias) * self.scale
        if not self.cap:
            return z, torch.ones_like(z)
        tanh = torch.tanh(z / self.cap)
        return self.cap * tanh, 1 - tanh**2

    def _softmax(self) -> None:
        largest = self.z.max(dim=1, keepdim=True).values
        self.e = torch.exp(self.z - largest)
        self.total = self.e.sum(1, keepdim=True)
        self.p = self.e / self.total
        self.logp = (self.z - largest) - self.total.log()
        self.logsumexp = largest + self.total.log()
        self.entropy = -(self.p * self.logp).masked_fill(self.p == 0, 0.0).sum(1, keepdim=True)
        self.finite = self.z.masked_fill(self.is_masked, 0.0)
        # what is rounded before the exponents; the tanh of a usual cap is as exact as 1 is
        least = self.cap if self.cap <= 64 else 0.0
        size = self.finite.abs().max(1, keepdim=True).values.clamp(min=least)
        self.size = size if self.case.transformed else torch.zeros_like(size)
        self.down = (largest - self.finite).masked_fill(self.is_masked, 0.0)
        of_sum = 4 + 2 * (self.p * self.down).sum(1, keepdim=True) + self.size
        # relative error of each p
        self.error = FP32 * (of_sum + 2 * self.down)

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Name to value and allowed error."""
        summed = (self.c * (self.finite.abs() + self.cap)).sum(1, keepdim=True)
        least = self.error.amin(1, keepdim=True)
        found = {
            "logprob": (self.logp.gather(1, self.y), 2 * self.error.gather(1, self.y)),
            "logsumexp": (self.logsumexp, 2 * least + 2 * FP32 * self.logsumexp.abs()),
            "logit_sum": ((self.c * self.finite).sum(1, keepdim=True), 4 * FP32 * summed),
            "entropy": (
                self.entropy,
                4 * (self.error * self.p * (1 + self.down)).sum(1, keepdim=True),
            ),
        }
        return {
            k: ((right + self.nan)[:, 0], allowed[:, 0]) for k, (right, allowed) in found.items()
        }

    def correct(self) -> tuple[Tensor, Tensor]:
        """Whether the first largest logit is the label's; where rounding can't turn the order."""
        margin = FP32 * 8 * (1 + self.size) if self.case.transformed else torch.tensor(0.0)
        is_near = (self.z - self.z.gather(1, self.y)).abs() < margin
        right = (self.z.argmax(1) == self.y[:, 0]) & ~self.nan[:, 0].isnan()
        return right, ~(is_near & ~self.is_label).any(1)

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Gradient of the logits and allowed error."""
        at_logprob, at_logsumexp, slope, at_sum, at_entropy = map(self._upstream, GRADIENTS)
        sloped = slope * self.logsumexp
        # 1 - p of the label, as a sum
        rest = self.e.masked_fill(self.is_label, 0.0).sum(1, keepdim=True) / self.total
        of_logprob = torch.where(self.is_label, rest, -self.p) * at_logprob
        centred = (self.logp + self.entropy).masked_fill(self.p == 0, 0.0)
        of_sum = at_sum * self.c.expand_as(self.z).masked_fill(self.is_masked, 0.0)
        of_entropy = at_entropy * self.p
        d = of_logprob + (at_logsumexp + sloped) * self.p + of_sum - of_entropy * centred
        right = d * self.slope * self.scale + self.nan
        added = self.p * (at_logsumexp.abs() + sloped.abs()) + of_sum.abs()
        added += of_logprob.abs() + of_entropy.abs() * (1 + centred.abs())
        info = torch.finfo(self.case.logits.dtype)
        allowed = 0.51 * info.eps * right.abs() + 4 * self.error * added * abs(self.scale)
        # what is under the smallest normal number may be 0
        return right, allowed + max(info.smallest_normal * info.eps, 4 * TINY)

    def _upstream(self, name: str) -> Tensor:
        found = getattr(self.case.upstream, name)
        return torch.zeros(1, 1).double() if found is None else found.cpu().double()[:, None]


def assert_right(case: Case, result: Result, out: Tensor) -> None:
    """Statistics and gradient are within what is allowed, NaN exactly where they must be."""
    expected = Truth(case)
    for name, (right, allowed) in expected.statistics().items():
        given = getattr(result, name)
        if given is not None:
            assert_close(name, given, right, allowed)
    assert result.correct is not None
    correct, decided = expected.correct()
    assert torch.equal(result.correct.cpu()[decided], correct[decided])
    if case.upstream is None:
        assert torch.equal(out.nan_to_num(), case.logits.nan_to_num()), "logits were changed"
    else:
        assert_close("gradient", out, *expected.gradient())


def assert_close(name: str, given: Tensor, right: Tensor, allowed: Tensor) -> None:
    """Element by element; infinities and NaN at the same places."""
    given, allowed = given.cpu().double(), allowed.expand_as(right)
    assert torch.equal(given.isnan(), right.isnan()), f"{name}: NaN at other places"
    same = (given == right) | right.isnan()
    excess = torch.where(same, 0.0, (given - right).abs() / allowed)
    worst = int(excess.argmax())
    assert excess.max() <= 1, (
        f"{name}: {given.flatten()[worst]} instead of {right.flatten()[worst]}, "
        f"{float(excess.max()):.3g} times the allowed error"
    )


def _fp32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
