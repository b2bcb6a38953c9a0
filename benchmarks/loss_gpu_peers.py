"""The peers that need a GPU, beside those of `loss_peers.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from loss_inputs import IGNORE, Case
from loss_peers import COMMON_PEERS, TILED, TRL, LossFunction, Peer, Unavailable, import_fault
from torch import Tensor


def _liger(**settings: Any) -> Callable[[Case, torch.device], LossFunction]:
    def make(case: Case, device: torch.device) -> LossFunction:
        _needs_gpu(device)
        try:
            from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
        except Exception as error:
            raise Unavailable(import_fault(error)) from error

        def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            result: Tensor = liger_fused_linear_cross_entropy(
                hidden, weight, labels, reduction="sum", softcap=case.softcap, **settings
            )
            return result

        return loss

    return make


def _cce(exact: bool) -> Callable[[Case, torch.device], LossFunction]:
    def make(case: Case, device: torch.device) -> LossFunction:
        _needs_gpu(device)
        try:
            from cut_cross_entropy import LinearCrossEntropyImpl, linear_cross_entropy
        except Exception as error:
            raise Unavailable(import_fault(error)) from error
        # old versions have no cce_exact; not filtering is what it does
        named = hasattr(LinearCrossEntropyImpl, "CCE_EXACT")
        settings: dict[str, Any] = {"impl": "cce"}
        if exact:
            settings = {"impl": "cce_exact"} if named else {"impl": "cce", "filter_eps": None}

        def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            result: Tensor = linear_cross_entropy(
                hidden, weight, labels, softcap=case.softcap, reduction="sum", **settings
            )
            return result

        return loss

    return make


def _quack(case: Case, device: torch.device) -> LossFunction:
    _needs_gpu(device)
    try:
        from quack.linear_cross_entropy import chunked_linear_cross_entropy
    except Exception as error:
        raise Unavailable(import_fault(error)) from error
    if case.softcap is not None:
        raise Unavailable("has no soft cap")

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        result: Tensor = chunked_linear_cross_entropy(
            hidden, weight, labels, ignore_index=IGNORE, reduction="sum"
        )
        return result

    return loss


def _needs_gpu(device: torch.device) -> None:
    # Triton's interpreter runs Triton kernels on a CPU, for rehearsals
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise Unavailable("needs a GPU")


GPU_PEERS = (
    *COMMON_PEERS,
    Peer("liger-kernel", _liger(), "its Triton kernel with its defaults"),
    Peer(
        "liger-kernel, fp32 sums",
        _liger(accum_dtype=torch.float32),
        "with `accum_dtype=torch.float32`",
    ),
    Peer("cut-cross-entropy", _cce(exact=False), "`cce`: gradients under a threshold are left out"),
    Peer("cut-cross-entropy, exact", _cce(exact=True), "`cce_exact`, or `filter_eps=None`"),
    Peer("quack-kernels", _quack, "`chunked_linear_cross_entropy` with its defaults"),
    TILED,
    TRL,
)
