"""Everybody's LM head + cross-entropy behind one signature: (hidden, weight, labels) -> sum.

Every peer is called as its documentation or its main user calls it, with the sum over supervised
tokens and an upstream gradient of 1 (the only one that DeepSpeed's is right for). One that isn't
installed, or can't do a case, raises `Unavailable` with the reason, which the tables show.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from loss_inputs import DTYPES, IGNORE, Case, cap
from torch import Tensor

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
_TILED_SHARDS = 8


class Unavailable(Exception):
    """Why a peer can't be tried here."""


@dataclass(frozen=True)
class Peer:
    """One way to compute the loss."""

    name: str
    make: Callable[[Case, torch.device], LossFunction]
    about: str
    compiles: bool = False
    """Whether each shape is compiled for itself, so that only that shape warms it up."""


def eager_loss(softcap: float | None) -> LossFunction:
    """Logits in the model's dtype, the loss on their fp32 copy, as in Hugging Face models."""

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        logits = cap(F.linear(hidden, weight), softcap).float()
        return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")

    return loss


def _eager(case: Case, device: torch.device) -> LossFunction:
    return eager_loss(case.softcap)


def _compiled(case: Case, device: torch.device) -> LossFunction:
    torch.compiler.reset()
    compiled: LossFunction = torch.compile(eager_loss(case.softcap), dynamic=False)
    return compiled


def ours(implementation: str) -> Callable[[Case, torch.device], LossFunction]:
    """This project's, of one implementation."""

    def make(case: Case, device: torch.device) -> LossFunction:
        from ds_train.ops import linear_cross_entropy
        from ds_train.ops.implementations import choose

        try:
            choose(implementation, device, DTYPES[case.dtype])
        except ValueError as error:
            raise Unavailable(str(error)) from error

        def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            result: Any = linear_cross_entropy(
                hidden, weight, labels, softcap=case.softcap, implementation=implementation
            )
            return result

        return loss

    return make


def chosen(device: torch.device, dtype: str) -> str:
    """What `auto` takes here, and why."""
    from ds_train.ops.implementations import choose

    name, reason = choose("auto", device, DTYPES[dtype])
    return f"{name} ({re.sub(r'/[^ ]*/', '', reason)})"  # no folders of this machine


def _torch_options(**settings: Any) -> Callable[[Case, torch.device], LossFunction]:
    def make(case: Case, device: torch.device) -> LossFunction:
        if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
            raise Unavailable(f"torch {torch.__version__} has no LinearCrossEntropyOptions")
        if case.softcap is not None:
            raise Unavailable("has no soft cap")
        options = torch.nn.LinearCrossEntropyOptions(**settings)

        def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            return F.linear_cross_entropy(
                hidden, weight, labels, reduction="sum", ignore_index=IGNORE, options=options
            )

        return loss

    return make


def _deepspeed(case: Case, device: torch.device) -> LossFunction:
    try:
        from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledFusedLogitsLoss
    except Exception as error:
        raise Unavailable(import_fault(error)) from error
    tile_loss = eager_loss(case.softcap)

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        def tile(_: Any, x: Tensor, y: Tensor) -> Tensor:
            return tile_loss(x, weight, y)

        result: Tensor = TiledFusedLogitsLoss.apply(
            tile, None, hidden[None], labels[None], None, _TILED_SHARDS, [weight], "sum"
        )
        return result

    return loss


def _trl(case: Case, device: torch.device) -> LossFunction:
    try:
        from trl.kernels import ChunkedLogProbFunction
    except Exception as error:
        raise Unavailable(import_fault(error)) from error

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        # as its `add_fused_lm_head` does: rows are left out where Triton runs, nowhere else
        keep = labels != IGNORE
        compact = hidden.is_cuda
        logprobs = ChunkedLogProbFunction.apply(
            hidden[keep] if compact else hidden,
            weight,
            None,
            labels[keep] if compact else labels.clamp(min=0),
            1.0,
            32768,
            case.softcap,
            1.0,
            (),
        )[0]
        result: Tensor = -(logprobs if compact else logprobs[keep]).sum()
        return result

    return loss


def import_fault(error: BaseException) -> str:
    """What keeps a package from loading, in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:120]


EAGER = Peer("eager", _eager, "`F.linear`, then `F.cross_entropy` on the logits in fp32")
COMMON_PEERS = (
    EAGER,
    Peer("torch.compile", _compiled, "of the eager function, `dynamic=False`", compiles=True),
    Peer("ds-train", ours("auto"), "`linear_cross_entropy`, what `auto` takes here"),
    Peer("ds-train chunked", ours("chunked"), "the same in plain torch"),
    Peer("torch options", _torch_options(), "`F.linear_cross_entropy` with default options"),
)
TILED = Peer(
    "DeepSpeed tiled",
    _deepspeed,
    f"`TiledFusedLogitsLoss`, {_TILED_SHARDS} shards, eager's function in each",
)
TRL = Peer("TRL chunked", _trl, "`ChunkedLogProbFunction` as its trainers call it")
CPU_PEERS = (
    *COMMON_PEERS,
    Peer(
        "torch options, tuned",
        _torch_options(acc_policy="accurate", chunking_method=None, batch_chunk_size=128),
        "with `acc_policy='accurate', chunking_method=None, batch_chunk_size=128`",
    ),
    TILED,
    TRL,
)


def peer_named(name: str) -> Peer:
    """One of `CPU_PEERS`."""
    return next(peer for peer in CPU_PEERS if peer.name == name)


def selected(peers: tuple[Peer, ...], names: list[str], quick: bool) -> tuple[Peer, ...]:
    """Those that were asked for; in a quick run what compiles says that it is left out."""
    chosen_peers = tuple(peer for peer in peers if peer.name in names)
    return tuple(
        replace(peer, make=_too_slow) if quick and peer.compiles else peer for peer in chosen_peers
    )


def _too_slow(case: Case, device: torch.device) -> LossFunction:
    raise Unavailable("left out of --quick: compiling takes longer than all the rest")
