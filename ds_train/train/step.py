"""One optimizer step in which every supervised token of the global batch weighs the same.

    loss = sum over all ranks and micro-batches of the tokens' losses / number of those tokens

The number is known before the first forward, so gradients only ever add up. The same update
follows from any number of ranks, micro-batch size, accumulation, packing and ZeRO stage. Losses
over candidate answers are sums over a known number of examples in the same way (objective.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds_train.data.batch import Batch
from ds_train.data.store import TokenStore
from ds_train.engine.engine import Engine
from ds_train.engine.ranks import Ranks, peak_memory_bytes
from ds_train.engine.stopwatch import Lap
from ds_train.train.objective import Objective, loss_of, means


@dataclass(frozen=True)
class StepResult:
    """What one step gave, the same on every rank."""

    loss: float
    """Mean over the step's supervised tokens, or examples."""
    parts: Mapping[str, float]
    """Means of the losses that it is made of, by name; empty where there is only one."""
    grad_norm: float
    """Global norm before clipping; inf where fp16 overflowed and the step was skipped."""
    stop: bool
    """Some rank was asked to stop."""
    peak_memory_bytes: int
    """Of the rank that has taken most, up to this step's last backward."""
    count_next: bool = False
    """Rank 0 asks for the collectives of a coming step to be counted."""
    compute_seconds: Sequence[float] = ()
    """Each rank's time of computation since the exchange before this one (`engine.traffic`)."""
    waiting_seconds: Sequence[float] = ()
    """Each rank's time of standing still because of communication, over the same stretch."""


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Dropout depends on nothing but this, so that a resumed run draws the same masks."""
    digest = hashlib.blake2b(f"dropout {seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def train_step(
    engine: Engine,
    batches: Sequence[Batch],
    *,
    objective: Objective,
    learning_rate: float,
    stop: bool,
    count_next: bool = False,
) -> StepResult:
    """Forward and backward over this rank's micro-batches, then one update.

    Args:
        objective: what is minimised, with what its sums over the whole step are divided by.
        stop: this rank was asked to stop; one all-reduce tells the others, with the loss.
        count_next: this rank wants collectives to be counted; told in the same way.

    The update is not made where the loss is not finite.
    """
    device, parts = engine.ranks.device, objective.parts
    sums = torch.zeros(len(parts), dtype=torch.float64, device=device)
    with engine.accumulate():
        for batch in batches:
            batch_sums = objective.sums(engine, batch.to(device))
            engine.backward(loss_of(parts, batch_sums))
            sums += batch_sums.detach()
    message = _pack(engine.ranks, sums, stop, count_next, engine.traffic.lap())
    told = engine.traffic.exchange(message)
    totals, (num_stops, num_wishes) = told[: len(parts)], told[len(parts) : len(parts) + 2]
    peaks, compute, waiting = told[len(parts) + 2 :].view(3, -1)
    loss = float(loss_of(parts, totals))
    return StepResult(
        loss=loss,
        parts=means(parts, totals),
        grad_norm=engine.step(learning_rate) if math.isfinite(loss) else math.nan,
        stop=bool(num_stops > 0),
        peak_memory_bytes=int(peaks.max()),
        count_next=bool(num_wishes > 0),
        compute_seconds=compute.tolist(),
        waiting_seconds=waiting.tolist(),
    )


def _pack(ranks: Ranks, sums: Tensor, stop: bool, count_next: bool, lap: Lap) -> Tensor:
    """[parts + 2 + 3 world_size]: what the ranks tell each other; memory and times of each."""
    own = torch.zeros(3, ranks.world_size, dtype=torch.float64)
    own[0, ranks.rank] = peak_memory_bytes(ranks.device)
    own[1, ranks.rank], own[2, ranks.rank] = lap.compute_seconds, lap.waiting_seconds
    wishes = torch.tensor([stop, count_next], dtype=torch.float64)
    return torch.cat([sums, torch.cat([wishes, own.flatten()]).to(sums.device)])


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy over held-out rows, the same on every rank."""

    loss: float
    token_accuracy: float
    num_tokens: int
    """Supervised tokens."""
    bits_per_byte: float | None = None
    """Loss in bits over the bytes of text that these tokens stand for; does not depend on the
    tokenizer. None where rows are more than samples of the store (demonstrations, pieces)."""


@torch.no_grad()
def evaluate_batches(
    engine: Engine, batches: Iterable[Batch], store: TokenStore | None = None
) -> Evaluation:
    """Mean loss and accuracy over the supervised tokens of all ranks' batches.

    `store`: what the batches are made of, for bits per byte.
    """
    device = engine.ranks.device
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    engine.train_mode(False)
    for batch in batches:
        losses, correct = engine.token_losses(batch.to(device))
        sums[:2] += torch.stack([losses.double().sum(), correct.double().sum()])
        sums[2] += batch.num_supervised
        if store is not None:
            sums[3] += int(store.num_bytes[batch.sample_ids].sum())
            sums[4] += int(store.supervised[batch.sample_ids].sum())
    engine.train_mode(True)
    loss_sum, num_correct, num_tokens, num_bytes, in_samples = engine.ranks.sum(sums).tolist()
    whole = num_bytes > 0 and in_samples == num_tokens
    return Evaluation(
        loss=loss_sum / num_tokens,
        token_accuracy=num_correct / num_tokens,
        num_tokens=int(num_tokens),
        bits_per_byte=loss_sum / math.log(2) / num_bytes if whole else None,
    )
