"""Hands a model and its optimizer to DeepSpeed."""

from __future__ import annotations

from functools import cache
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig

from ds_train.config.train import TrainConfig
from ds_train.engine.engine import Engine
from ds_train.engine.ranks import Ranks
from ds_train.engine.thaw import Thaw
from ds_train.model.shared_rows import SharedRows, share_rows

Groups = list[dict[str, Any]]


def sharded_loading(ds_config: dict[str, Any], pretrained: bool) -> HfDeepSpeedConfig | None:
    """Under ZeRO-3, what makes transformers load weights into shards, as long as it is kept."""
    if ds_config["zero_optimization"]["stage"] == 3 and pretrained:
        return HfDeepSpeedConfig(ds_config)
    return None


def build_engine(
    model: nn.Module,
    groups: Groups,
    *,
    train: TrainConfig,
    ds_config: dict[str, Any],
    coalesce: bool,
    ranks: Ranks,
) -> Engine:
    """Hand the model and its optimizer to DeepSpeed.

    Ranks that share rows are not told to it: every rank is one of n whose gradients are averaged,
    at every stage, which `backward` undoes. Told of them, DeepSpeed 0.19 divides by another number
    at stage 3 than at 0 to 2.
    """
    thaw = Thaw(groups)  # before DeepSpeed takes the groups apart
    shared = _shared_rows(model, ranks)
    optimizer, optimizer_name = _build_optimizer(groups, train, offloads_optimizer(ds_config))
    wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    return Engine(
        wrapped, ranks, train, thaw, coalesce=coalesce, optimizer_name=optimizer_name, shared=shared
    )


def _shared_rows(model: Any, ranks: Ranks) -> SharedRows | None:
    """Attention that exchanges between the ranks of a row; None where each has rows of its own."""
    size = ranks.sequence_parallel_size
    if size == 1:
        return None
    group = _sequence_group(size, ranks)

    def all_to_all(output: Tensor, sent: Tensor) -> None:
        deepspeed.comm.all_to_all_single(output, sent, group=group)  # seen by its comms logger

    return share_rows(model.model, size, all_to_all)


@cache
def _sequence_group(size: int, ranks: Ranks) -> Any:
    """This rank's group of `size` neighbours; every rank has to make all of them."""
    groups = [
        deepspeed.comm.new_group(list(range(first, first + size)))
        for first in range(0, ranks.world_size, size)
    ]
    return groups[ranks.dp_rank]


def offloads_optimizer(ds_config: dict[str, Any]) -> bool:
    """Whether the optimizer works on the host beside a GPU, in DeepSpeed's own C++.

    Without a GPU torch's fused AdamW does the same work, and nothing has to be compiled.
    """
    offload = ds_config["zero_optimization"].get("offload_optimizer") or {}
    return offload.get("device", "none") != "none" and torch.cuda.is_available()


def _build_optimizer(
    groups: Groups, train: TrainConfig, offload: bool
) -> tuple[torch.optim.Optimizer, str]:
    # The learning rate is set before every step; until then it must be 0, not a default.
    if train.optim == "adafactor":
        optimizer = torch.optim.Adafactor(groups, lr=0.0)
        return optimizer, "Adafactor (torch)"
    kwargs: dict[str, Any] = {
        "lr": 0.0,
        "betas": (train.adam_beta1, train.adam_beta2),
        "eps": train.adam_epsilon,
    }
    if offload:
        try:
            from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiles C++: only when wanted

            return DeepSpeedCPUAdam(groups, adamw_mode=True, **kwargs), "DeepSpeedCPUAdam"
        except (RuntimeError, OSError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            return torch.optim.AdamW(groups, **kwargs), (
                f"AdamW (torch) on the CPU, as DeepSpeedCPUAdam did not build: {reason}"
            )
    return torch.optim.AdamW(groups, fused=True, **kwargs), "AdamW (torch, fused)"
