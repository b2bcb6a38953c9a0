"""A model that ZeRO-3 has dealt out over the ranks and that only answers."""

from __future__ import annotations

from typing import Any

import deepspeed
from torch import Tensor, nn

from ds_train.engine.ranks import Ranks
from ds_train.launch.marks import tick


def shard_for_inference(model: nn.Module, dtype: str, ranks: Ranks) -> ShardedModel:
    """Hand a whole model to ZeRO-3, which leaves each rank its part; a collective call.

    Args:
        model: `LanguageModel` on the CPU; dtype: of its weights, bf16, fp16 or fp32.
    """
    config = {
        "train_micro_batch_size_per_gpu": 1,
        # parameters that are never sharded would hide what is not gathered
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": dtype == "bf16"},
        "fp16": {"enabled": dtype == "fp16"},
        "steps_per_print": 2**31 - 1,
    }
    wrapped, *_ = deepspeed.initialize(model=model, config=config)
    return ShardedModel(wrapped, ranks)


class ShardedModel:
    """A model under ZeRO-3 that answers and does not train."""

    def __init__(self, engine: Any, ranks: Ranks) -> None:
        self._engine = engine
        self.ranks = ranks
        self.train_mode(False)

    @property
    def module(self) -> nn.Module:
        """The module under DeepSpeed."""
        return self._engine.module

    def label_losses(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """`LanguageModel.forward` itself, per token; every rank has to call it as often."""
        tick()
        losses, correct = self._engine(*args, per_token=True, **kwargs)
        return losses, correct

    def train_mode(self, training: bool) -> None:
        """Dropout on or off."""
        self._engine.train(training)
