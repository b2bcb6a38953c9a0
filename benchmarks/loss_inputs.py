"""Inputs of the loss benchmarks that look like a trained model's, and the truth about them in fp64.

Hidden states are normal, and the weight is scaled until the mean largest probability is 0.5; labels
are drawn from the distribution that the head predicts. Peers that skip small probabilities, and
rounding errors, then meet what they meet in training; on zeros or a fresh head they don't.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORE = -100
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_SPAN = 64  # tokens of a prompt or an answer, which alternate where labels are masked
_SLAB = 4096  # columns of the vocabulary that are held at once in fp64
_SAMPLED_TOKENS, _SAMPLED_COLUMNS = 64, 128
_LARGEST_PROBABILITY = 0.5
_FIRST_SCALE, _SCALE_STEP, _NUM_SCALES = 0.5, 1.05, 80  # up to a standard deviation of 24


@dataclass(frozen=True)
class Case:
    """One problem: tokens x hidden size x vocabulary, and what is trained and masked."""

    tokens: int
    dim: int
    vocab: int
    dtype: str
    frozen: bool = False
    masked: float = 0.0
    softcap: float | None = None

    @property
    def num_supervised(self) -> int:
        """Tokens with a label."""
        return int(supervised(self).sum())

    @property
    def gemms(self) -> int:
        """Matrix products that are needed: logits, gradient of hidden, gradient of the weight."""
        return 2 if self.frozen else 3

    @property
    def flop(self) -> float:
        """Floating-point operations of those products over supervised tokens."""
        return 2.0 * self.num_supervised * self.dim * self.vocab * self.gemms

    def title(self) -> str:
        """For headings."""
        head = "frozen head" if self.frozen else "full"
        cap = f", soft cap {self.softcap:g}" if self.softcap else ""
        shape = f"N {self.tokens}, D {self.dim}, V {self.vocab}"
        return f"{shape}, {self.dtype}{cap}, {head}, {self.masked:.0%} masked"


@dataclass
class Inputs:
    """Tensors of a case; weight and hidden are shared by its frozen and masked variants."""

    hidden: Tensor
    """[n, d]"""
    weight: Tensor
    """[v, d]"""
    drawn: Tensor
    """[n] int64, a label for every token"""

    def labels(self, case: Case) -> Tensor:
        """[n], IGNORE where the case masks."""
        keep = supervised(case).to(self.drawn.device)
        return torch.where(keep, self.drawn, IGNORE)


def supervised(case: Case) -> Tensor:
    """[n] bool: of each prompt with its answer, the last part."""
    length = min(2 * _SPAN, case.tokens)
    return torch.arange(case.tokens) % length / length >= case.masked


def make_inputs(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Random inputs; the same for the same seed, device and torch."""
    draw = torch.Generator(device).manual_seed(seed)
    hidden = torch.randn(case.tokens, case.dim, generator=draw, device=device)
    weight = torch.randn(case.vocab, case.dim, generator=draw, device=device)
    weight *= _scale(hidden[:_SAMPLED_TOKENS] @ weight.t(), case.softcap)
    dtype = DTYPES[case.dtype]
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    return Inputs(hidden, weight, _draw_labels(hidden, weight, case.softcap, draw))


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """Soft-capped logits."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _scale(logits: Tensor, softcap: float | None) -> float:
    """The first factor of unit logits at which their mean largest probability is what it should be.

    Under a soft cap it may never be, as large logits become equal: then where it is largest.
    """
    unit, reached = logits / logits.std(), []
    scales = [_FIRST_SCALE * _SCALE_STEP**i for i in range(_NUM_SCALES)]
    for scale in scales:
        reached.append(float(cap(unit * scale, softcap).softmax(dim=-1).amax(dim=-1).mean()))
        if reached[-1] >= _LARGEST_PROBABILITY:
            break
    return scales[reached.index(max(reached))] / float(logits.std())


def _draw_labels(
    hidden: Tensor, weight: Tensor, softcap: float | None, draw: torch.Generator
) -> Tensor:
    """A label for each token from its predicted distribution, by the Gumbel trick."""
    best = torch.full((len(hidden),), -torch.inf, device=hidden.device)
    labels = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    narrow = hidden.bfloat16()
    for start in range(0, len(weight), _SLAB):
        z = cap((narrow @ weight[start : start + _SLAB].bfloat16().t()).float(), softcap)
        z -= torch.empty_like(z).exponential_(generator=draw).log_()
        largest, column = z.max(dim=1)
        labels = torch.where(largest > best, column + start, labels)
        best = torch.maximum(best, largest)
    return labels


class Truth:
    """Loss sum and gradients in fp64, of sampled tokens and vocabulary rows.

    Of the weight's rows, one sample is of labels, where gradients are large, and one of others.
    """

    def __init__(self, case: Case, inputs: Inputs, seed: int = 1) -> None:
        self.inputs, self.softcap = inputs, case.softcap
        hidden, weight, labels = inputs.hidden, inputs.weight, inputs.drawn
        self.hidden = hidden.double()
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.randperm(case.tokens, generator=draw)[:_SAMPLED_TOKENS]
        self.tokens = tokens.to(hidden.device).sort().values
        self.logsumexp = self._logsumexp()
        target = cap((self.hidden * weight[labels].double()).sum(dim=1), self.softcap)
        self.losses = self.logsumexp - target
        seen = labels.unique()
        others = torch.ones(case.vocab, dtype=torch.bool, device=hidden.device)
        others[seen] = False
        self.columns = {
            "labels": _sample(seen, draw),
            "others": _sample(others.nonzero()[:, 0], draw),
        }
        self.grad_hidden = self._grad_hidden()

    def _logsumexp(self) -> Tensor:
        total = torch.full_like(self.hidden[:, 0], -torch.inf)
        for start in range(0, len(self.inputs.weight), _SLAB):
            slab = self.inputs.weight[start : start + _SLAB].double()
            z = cap(self.hidden @ slab.t(), self.softcap)
            total = torch.logaddexp(total, z.logsumexp(dim=1))
        return total

    def _gradient(self, z: Tensor, logsumexp: Tensor, target: Tensor) -> Tensor:
        """d loss / d (product of hidden and weight), from those products [a, b]."""
        capped = cap(z, self.softcap)
        gradient = torch.exp(capped - logsumexp[:, None]) - target.to(z.dtype)
        return gradient if self.softcap is None else gradient * (1 - (capped / self.softcap) ** 2)

    def _grad_hidden(self) -> Tensor:
        """[sampled tokens, d], as if every token were supervised."""
        hidden, labels = self.hidden[self.tokens], self.inputs.drawn[self.tokens]
        result = torch.zeros_like(hidden)
        for start in range(0, len(self.inputs.weight), _SLAB):
            slab = self.inputs.weight[start : start + _SLAB].double()
            columns = torch.arange(start, start + len(slab), device=hidden.device)
            target = labels[:, None] == columns
            logsumexp = self.logsumexp[self.tokens]
            result += self._gradient(hidden @ slab.t(), logsumexp, target) @ slab
        return result

    def _grad_weight(self, columns: Tensor, keep: Tensor) -> Tensor:
        """[columns, d] over supervised tokens."""
        hidden, labels = self.hidden[keep], self.inputs.drawn[keep]
        z = hidden @ self.inputs.weight[columns].double().t()
        target = labels[:, None] == columns
        return self._gradient(z, self.logsumexp[keep], target).t() @ hidden

    def errors(
        self, labels: Tensor, loss: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None
    ) -> dict[str, float]:
        """Relative errors of a loss sum and its gradients; those of gradients in the norm."""
        keep = labels != IGNORE
        true_loss = self.losses[keep].sum()
        result = {"loss": float((loss.double() - true_loss).abs() / true_loss)}
        if grad_hidden is not None:
            true_grad = self.grad_hidden * keep[self.tokens, None]
            result["grad_hidden"] = _relative(grad_hidden[self.tokens], true_grad)
        if grad_weight is not None:
            for name, columns in self.columns.items():
                true_grad = self._grad_weight(columns, keep)
                result[f"grad_weight_{name}"] = _relative(grad_weight[columns], true_grad)
        return result


def _sample(items: Tensor, draw: torch.Generator) -> Tensor:
    return items[torch.randperm(len(items), generator=draw)[:_SAMPLED_COLUMNS].to(items.device)]


def _relative(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def variants(case: Case, masked: tuple[float, ...] = (0.0, 0.5)) -> list[Case]:
    """The case with the whole head trained and frozen, without and with masked labels."""
    return [replace(case, frozen=f, masked=m) for f in (False, True) for m in masked]
