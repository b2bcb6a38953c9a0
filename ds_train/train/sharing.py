"""Proof, on the model itself, that rows shared by several ranks have the losses of whole rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ds_train.data.batch import Batch
from ds_train.engine.engine import Engine
from ds_train.errors import ConfigError

_ROW_PART = 16
"""Positions of a rank in the row that is tried."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Of a token's loss, relative to the mean: what another order of sums may change."""


@torch.no_grad()
def check_shared_rows(engine: Engine) -> str:
    """Compare each rank's positions of a row of three documents with the row computed whole.

    A collective call. Returns what to say about it.

    Raises:
        ConfigError: a layer that did not exchange, or losses that differ: the architecture mixes
            positions in another way than through its attention.
    """
    shared, ranks = engine.shared, engine.ranks
    assert shared is not None
    inner: Any = engine.module.model
    text = inner.config.get_text_config()
    batch = _batch(_ROW_PART * shared.size, text.vocab_size)
    engine.train_mode(False)
    whole = engine.token_losses(batch.to(ranks.device))[0]
    shared.num_calls = 0
    own = engine.token_losses(engine.share(batch).to(ranks.device))[0]
    engine.train_mode(True)
    place = slice(ranks.sequence_rank * _ROW_PART, (ranks.sequence_rank + 1) * _ROW_PART)
    worst = _largest_difference(own, whole[:, place])
    wrong = worst > _TOLERANCE[next(inner.parameters()).dtype] * float(whole.mean())
    layers = text.num_hidden_layers
    # all ranks have to end alike: one that is off alone would leave the others waiting
    num_wrong = int(ranks.sum(torch.tensor(float(wrong or shared.num_calls != layers))))
    setting = f"engine.sequence_parallel_size = {shared.size}"
    if num_wrong:
        raise ConfigError(
            f"{setting}: shared rows do not have the losses of whole ones in this architecture "
            f"({text.model_type}: {shared.num_calls} of {layers} layers exchange, a token's loss "
            f"moves by up to {worst:.2g}). Set engine.sequence_parallel_size: 1."
        )
    return (
        f"rows: {shared.size} processes share each, {layers} layers exchange heads for positions "
        f"(a token's loss moves by {worst:.1e}; tried)"
    )


def _largest_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


def _batch(length: int, vocab_size: int) -> Batch:
    """One row of three documents, every token of them learned."""
    draw = np.random.default_rng(0)
    ids = torch.from_numpy(draw.integers(0, vocab_size, (1, length)))
    positions = np.arange(length)
    for start in (length // 3, length // 2):
        positions[start:] = np.arange(length - start)
    nobody = np.empty(0, dtype=np.int64)
    return Batch(
        input_ids=ids,
        labels=ids.roll(-1, dims=1),
        position_ids=torch.from_numpy(positions)[None],
        sample_ids=nobody,
        sample_tokens=nobody,
        num_rows=1,
        num_supervised=length,
    )
