"""GEMMs alone, timed in the peers' rounds: the floor of a case, and the rate of a square one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from loss_inputs import Case, Inputs
from loss_peers import Peer
from torch import Tensor

FLOOR, SQUARE = "GEMMs alone (floor)", "one square GEMM"


def gemm_peers(case: Case, inputs: Inputs, square_size: int) -> tuple[Peer, Peer]:
    """The products that the case needs, each on whole matrices by torch; and one square product."""

    def floor(*_: Any) -> Callable[..., Tensor]:
        n = case.num_supervised
        hidden, weight = inputs.hidden[:n], inputs.weight
        gradient = torch.randn(n, case.vocab, device=hidden.device, dtype=hidden.dtype)

        def products() -> None:
            torch.mm(hidden, weight.t())
            torch.mm(gradient, weight)
            if not case.frozen:
                torch.mm(gradient.t(), hidden)

        return _as_loss(products, hidden)

    def square(*_: Any) -> Callable[..., Tensor]:
        like = inputs.hidden.new_empty(square_size, square_size)
        a, b = torch.randn_like(like), torch.randn_like(like)
        return _as_loss(lambda: torch.mm(a, b), a)

    about = "by `torch.mm`, without the loss"
    return Peer(FLOOR, floor, about), Peer(SQUARE, square, about)


def _as_loss(work: Callable[[], Any], like: Tensor) -> Callable[..., Tensor]:
    """Something that can be timed as the losses are: its backward does nothing."""
    zero = torch.zeros((), device=like.device, requires_grad=True)

    def loss(*_: Tensor) -> Tensor:
        work()
        return zero + 0

    return loss
