"""Collectives of one step: how often, how many bytes, how long.

A ring moves per rank, for a payload of S bytes on n ranks (Patarasuk and Yuan, JPDC 2009; the
`busbw` of nccl-tests):

    all_reduce  2 (n - 1) / n S        all_gather, reduce_scatter, all_to_all  (n - 1) / n S

Payloads, for T trained elements, c bytes a gradient on its way, w bytes a weight, k micro-batches:

    stage 0   all_reduce c T
    stage 1   all_reduce c T, all_gather w T
    stage 2   k x all_reduce c T (once where reductions wait), all_gather w T
    stage 3   k x all_gather w (what a micro-batch gathers, zero3_trace.py), all_gather w (what is
              never sharded), k x reduce_scatter c T (once where reductions wait)

Where s ranks share each row of t tokens, every layer exchanges heads for positions before its
attention and back after it (Jacobs et al., "DeepSpeed Ulysses", arXiv 2309.14509, section 3), again
for the gradients and for what is recomputed. A rank's payload, for b rows, h query and g key heads
of size d (r = s / gcd(s, g) copies of the latter, so that they divide):

    before    w b ceil(t / s) (h + 2 r g) d          after     w b ceil(t / s) h d

DeepSpeed 0.19 reduces with all_reduce at stage 2 too. Its communication logger counts a gather by
the part of one rank, S / n: `logged`. Compared with it in `benchmarks/results/plan_accuracy.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ds_train.plan.execution import attention_passes
from ds_train.plan.setting import Setting
from ds_train.plan.zero3_trace import Gathers

Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
LATENCY_SECONDS = 2e-5
"""Of one call; NCCL's small messages take 10 to 30 microseconds within a node. An assumption."""


@dataclass(frozen=True)
class Collective:
    """One kind of call in a step."""

    operation: Operation
    what: str
    payload: int
    """Bytes of the whole tensors, all calls of the step together."""
    calls: int
    ranks: int
    """That take part."""

    @property
    def sent(self) -> int:
        """Bytes that one rank sends."""
        return ring_bytes(self.operation, self.payload, self.ranks)

    @property
    def logged(self) -> int:
        """What DeepSpeed's communication logger counts."""
        return self.payload // self.ranks if self.operation == "all_gather" else self.payload

    def seconds(self, bandwidth: float) -> float:
        """Without anything that overlaps."""
        return self.sent / bandwidth + self.calls * LATENCY_SECONDS


def ring_bytes(operation: str, payload: int, ranks: int) -> int:
    """What one rank sends in a ring for a payload."""
    twice = 2 if operation == "all_reduce" else 1
    return round(twice * (ranks - 1) / ranks * payload)


def collectives(setting: Setting, gathers: Gathers | None) -> list[Collective]:
    """Those of one optimizer step; empty on one rank."""
    if setting.world_size == 1:
        return []
    found = [*_all(setting, gathers), *_exchanges(setting)]
    return [one for one in found if one.payload]


def _exchanges(setting: Setting) -> Iterator[Collective]:
    """Heads for positions, between the ranks of a row."""
    share, shape = setting.share, setting.trainable.shape
    if share == 1:
        return
    passes = attention_passes(
        setting.trainable, recompute=setting.config.model.gradient_checkpointing
    )
    calls = setting.batch.accumulation_steps * passes
    queries, values = shape.attention_widths
    copies = share // math.gcd(share, shape.num_kv_heads)
    key_heads = copies * shape.num_kv_heads / shape.num_heads
    before = round(queries + key_heads * (queries + values))
    a_token = calls * setting.width * setting.tokens
    yield Collective("all_to_all", "queries, keys, values", a_token * before, calls, share)
    yield Collective("all_to_all", "attention's output", a_token * values, calls, share)


def _all(setting: Setting, gathers: Gathers | None) -> Iterator[Collective]:
    stage, n = setting.stage, setting.world_size
    trained, w = setting.trainable.num_trainable, setting.width
    once = stage < 2 or setting.coalesces
    times = 1 if once else setting.batch.accumulation_steps
    bucket = max(1, int(setting.zero["reduce_bucket_size"]))
    reductions = times * max(1, -(-trained // bucket))
    gradients = times * setting.comm_width * trained
    if stage < 3:
        yield Collective("all_reduce", "gradients", gradients, reductions, n)
        if stage > 0:
            piece = max(1, int(setting.zero["allgather_bucket_size"]))
            calls = max(1, -(-trained // piece))
            yield Collective("all_gather", "updated weights", w * trained, calls, n)
        return
    assert gathers is not None
    k = setting.batch.accumulation_steps
    yield from _weights(setting, gathers, k)
    yield Collective("reduce_scatter", "gradients", gradients, reductions, n)
    yield Collective(
        "all_gather",
        "weights never sharded",
        w * gathers.persistent_elements,
        gathers.persistent_calls,
        n,
    )


def _weights(setting: Setting, gathers: Gathers, k: int) -> Iterator[Collective]:
    """With a second copy inside groups of ranks (ZeRO++), backward gathers stay within these."""
    w, n = setting.width, setting.world_size
    group = int(setting.zero.get("zero_hpz_partition_size", 1))
    if group <= 1:
        elements, calls = gathers.elements, k * gathers.calls
        yield Collective("all_gather", "weights", k * w * elements, calls, n)
        return
    forward, backward = gathers.forward_elements, gathers.backward_elements
    half = k * gathers.calls // 2
    yield Collective("all_gather", "weights, forward", k * w * forward, half, n)
    yield Collective("all_gather", "weights, backward", k * w * backward, half, group)
