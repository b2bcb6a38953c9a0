"""Texts as vectors: the model's own last hidden states, averaged over the text's tokens.

What the output layer is given is what the model knows of a text. Nearest neighbours by its cosine
are KATE's demonstrations (Liu et al. 2022, arXiv 2101.06804) without a second model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ds_train.evaluate.scorer import RequestScorer
from ds_train.evaluate.text import first_token
from ds_train.model.head import LanguageModel
from ds_train.ops.reference import IGNORE


def embed_texts(scorer: RequestScorer, tokenizer: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    """Mean of the last hidden states over each text's tokens: float32 [num_texts, d].

    BOS (else EOS) is read before each text and left out of the mean; of a text that is too long
    the end is read, next to which an answer would stand. Every rank computes all of them, in the
    same batches, so that all ranks find the same neighbours.

    Args:
        scorer: whose model is asked.
    """
    start = first_token(tokenizer)
    rows = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)[
            1 - scorer.max_length :
        ]
        rows.append([start, *ids])
    vectors: list[NDArray[np.float32] | None] = [None] * len(rows)
    with scorer.evaluating(), torch.no_grad():
        for numbers in _batches([len(row) for row in rows], scorer.batch_tokens):
            hidden = _hidden_states(scorer, [rows[number] for number in numbers])
            for number, states in zip(numbers, hidden, strict=True):
                # a text without tokens is what its beginning says
                own = states[1 : len(rows[number])] if len(rows[number]) > 1 else states[:1]
                vectors[number] = own.float().mean(dim=0).cpu().numpy()
    return np.stack([one for one in vectors if one is not None])


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of the texts of each batch, longest first; each batch is as wide as its first."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _hidden_states(scorer: RequestScorer, rows: Sequence[Sequence[int]]) -> Tensor:
    """What the output layer is given [rows, length, d]; padding stands on the right.

    The layer is asked for the losses of no label at all, so that no logits are made.
    """
    model = scorer.computes
    module: Any = model if isinstance(model, LanguageModel) else model.module
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for line, row in enumerate(rows):
        ids[line, : len(row)] = torch.tensor(row)
    labels = torch.full_like(ids, IGNORE)
    seen: list[Tensor] = []
    layer = module.head.layer
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        if not isinstance(model, LanguageModel):
            model.label_losses(ids.to(scorer.device), labels.to(scorer.device), num_supervised=0)
        else:
            model(ids.to(scorer.device), labels.to(scorer.device), num_supervised=0, per_token=True)
    finally:
        hook.remove()
    return seen[0][:, -width:]  # virtual tokens stand before
