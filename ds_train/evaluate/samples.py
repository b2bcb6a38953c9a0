"""What a model does on each sample of a store, and the numbers that follow.

Every sample stands alone in its row, so nothing depends on packing or attention masks; the sums
are those of training: token losses over all samples, divided by the number of supervised tokens.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ds_train.data.batch import Batch, eval_batches
from ds_train.data.mix import Ints
from ds_train.data.store import TokenStore
from ds_train.model.head import LanguageModel


@dataclass(frozen=True)
class Scores:
    """What a model did on each sample of a store [num_samples]."""

    loss_sum: NDArray[np.float64]
    """Sum of the losses of the supervised tokens, in nats."""
    num_correct: NDArray[np.int64]
    """Supervised tokens that were the most likely ones."""


def score_samples(
    model: LanguageModel,
    store: TokenStore,
    *,
    batch_size: int,
    max_length: int,
    pad_token_id: int,
    rows: Sequence[Ints] | None = None,
) -> Scores:
    """Scores of every sample of the store, longest samples first, on the model's device.

    `rows`: those of some samples in a context of their own, one learned sample a row; samples in
    none of them score 0.
    """
    device = next(model.parameters()).device
    loss_sum = np.zeros(store.num_samples)
    num_correct = np.zeros(store.num_samples, dtype=np.int64)
    batches = eval_batches(
        store,
        rank=0,
        dp_size=1,
        micro_batch_size=batch_size,
        max_length=max_length,
        packing=False,
        pad_token_id=pad_token_id,
        # Padding stands on the right and attention looks left: plain positions are the true ones.
        with_positions=False,
        rows=rows,
    )
    total = math.ceil((store.num_samples if rows is None else len(rows)) / batch_size)
    hidden = not sys.stderr.isatty()
    with torch.inference_mode():
        for batch in tqdm(batches, total=total, desc="evaluate", disable=hidden, leave=False):
            losses, correct = _score_batch(model, batch.to(device))
            ids = batch.sample_ids  # a row each; rows without a sample come last
            loss_sum[ids] = losses[: len(ids)]
            num_correct[ids] = correct[: len(ids)]
    return Scores(loss_sum, num_correct)


def _score_batch(
    model: LanguageModel, batch: Batch
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Loss sum and right argmaxes of each row [rows]."""
    losses, correct = model(
        batch.input_ids, batch.labels, num_supervised=batch.num_supervised, per_token=True
    )
    return losses.double().sum(dim=1).cpu().numpy(), correct.sum(dim=1).cpu().numpy()


def summarise(
    store: TokenStore, scores: Scores, members: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """Loss, perplexity, bits per byte, accuracy, exact match over the samples (or some `members`).

    `bits_per_byte` is the loss in bits over the UTF-8 bytes of the text that the supervised tokens
    stand for, which models of different tokenizers have in common; the end of a document costs bits
    and has no bytes.

    `exact_match` is the share of samples whose every supervised token is the most likely one:
    what greedy decoding, asked the same, would answer word for word.
    """
    chosen = np.ones(store.num_samples, bool) if members is None else members
    supervised = store.supervised[chosen].astype(np.int64)
    num_supervised = int(supervised.sum())
    loss_sum = float(scores.loss_sum[chosen].sum())
    loss, num_bytes = loss_sum / num_supervised, int(store.num_bytes[chosen].sum(dtype=np.int64))
    correct = scores.num_correct[chosen]
    return {
        "num_samples": int(chosen.sum()),
        "num_tokens": int(store.lengths[chosen].sum(dtype=np.int64)),
        "supervised_tokens": num_supervised,
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "bits_per_byte": loss_sum / math.log(2) / num_bytes if num_bytes else math.inf,
        "token_accuracy": float(correct.sum() / num_supervised),
        "exact_match": float((correct == supervised).mean()),
    }


def by_source(store: TokenStore, scores: Scores, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The numbers of each source that has samples in the store."""
    present = np.unique(store.sources).tolist()
    return {
        f"{names[index]}": summarise(store, scores, store.sources == index) for index in present
    }
