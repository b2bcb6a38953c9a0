"""Proof, on the model itself, that rows shared by several ranks have the losses of whole rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ds_train.data.batch import Batch
from ds_train.engine.engine import Engine
from ds_train.errors import ConfigError

_ROW_PART = 16
"""Positions of a rank in the row that is tried."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
"""Mean difference of a rank's losses over the mean loss: what another order of sums may change.

The mean, as a token of a mixture of experts may go to another expert for the last bit's sake."""


@torch.no_grad()
def check_shared_rows(engine: Engine) -> str:
    """Compare each rank's positions of a row of three documents with the row computed whole.

    The second document lies on all ranks, the others on the first and the last.

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
    off = (own - whole[:, place]).abs()
    limit = _TOLERANCE[inner.get_input_embeddings().weight.dtype] * float(whole.mean())
    layers = text.num_hidden_layers
    right = float(off.mean()) <= limit and shared.num_calls == layers  # NaN is not right
    # all ranks have to end alike: one that is off alone would leave the others waiting
    told = torch.zeros(2, ranks.world_size, dtype=torch.float64)
    told[:, ranks.rank] = torch.tensor([float(not right), float(off.max())])
    wrong, largest = ranks.sum(told)
    worst = float(largest.max())
    if wrong.any():
        raise ConfigError(
            f"engine.sequence_parallel_size = {shared.size}: shared rows do not have the losses of "
            f"whole ones in this architecture ({text.model_type}: {shared.num_calls} of {layers} "
            f"layers exchange, a token's loss moves by up to {worst:.2g}). Set "
            "engine.sequence_parallel_size: 1."
        )
    return (
        f"rows: {shared.size} processes share each, {layers} layers exchange heads for positions "
        f"(a token's loss moves by {worst:.1e}; tried)"
    )


def _batch(length: int, vocab_size: int) -> Batch:
    """One row of three documents, every token of them learned."""
    draw = np.random.default_rng(0)
    ids = torch.from_numpy(draw.integers(0, vocab_size, (1, length)))
    positions = np.arange(length)
    for start in (5, length - 7):
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
