"""Evaluation that ranks: every answer of the held-out examples is scored, on all ranks together.

The loss and the token accuracy are those of the right answers, as in any evaluation; each answer
stands in a line of its own, whatever data.packing says, so that its log-probability is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ds_train.data.batch import Batch
from ds_train.data.mix import Ints
from ds_train.data.store import TokenStore
from ds_train.engine.engine import Engine
from ds_train.errors import DataError
from ds_train.fewshot.ranking import NO_CHOICES, Trials, rank_accuracies
from ds_train.train.step import Evaluation


class Ranked(NamedTuple):
    """What an evaluation with rank classification gives, the same on every rank."""

    evaluation: Evaluation
    """Of the right answers."""
    shares: dict[str, float]
    """The metrics of fewshot/ranking.py."""


def rows_to_rank(store: TokenStore, max_examples: int | None) -> list[Ints]:
    """A row for each answer of the first so many examples.

    Raises:
        DataError: there is nothing to choose from.
    """
    examples = store.examples
    if examples is None or Trials.of(store) is None:
        raise DataError(
            NO_CHOICES.format(field="evaluate.rank_classification", part="the held-out data")
        )
    stop = examples.num_examples if max_examples is None else max_examples
    stop = int(examples.starts[min(stop, examples.num_examples)])
    return list(np.arange(stop, dtype=np.int64)[:, None])


@torch.no_grad()
def evaluate_ranked(
    engine: Engine, batches: Iterable[Batch], store: TokenStore, num_samples: int
) -> Ranked:
    """Score the first `num_samples` samples of a store; a collective call.

    Args:
        batches: this rank's share of the rows of `rows_to_rank`, a sample a line.
    """
    device = engine.ranks.device
    scores = torch.zeros(2, num_samples, dtype=torch.float64)
    engine.train_mode(False)
    for batch in batches:
        losses, correct = engine.token_losses(batch.to(device))
        lines = torch.stack([losses.double().sum(dim=1), correct.double().sum(dim=1)]).cpu()
        ids = torch.from_numpy(batch.sample_ids)
        scores[:, ids] = lines[:, : len(ids)]  # lines without a sample come last
    engine.train_mode(True)
    loss_sum, correct_sum = engine.ranks.sum(scores).numpy()
    members = np.arange(store.num_samples) < num_samples
    trials = Trials.of(store, members)
    assert trials is not None and store.examples is not None
    gold = np.flatnonzero(store.examples.gold[:num_samples])
    return Ranked(
        _of_right_answers(store, gold, loss_sum, correct_sum),
        rank_accuracies(trials, -loss_sum[trials.samples]),
    )


def _of_right_answers(
    store: TokenStore,
    gold: Ints,
    loss_sum: NDArray[np.float64],
    correct_sum: NDArray[np.float64],
) -> Evaluation:
    num_tokens = int(store.supervised[gold].sum(dtype=np.int64))
    return Evaluation(
        loss=float(loss_sum[gold].sum() / num_tokens),
        token_accuracy=float(correct_sum[gold].sum() / num_tokens),
        num_tokens=num_tokens,
    )
