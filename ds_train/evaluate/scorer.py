"""The one scorer of log-likelihood requests: on a plain model, or on the engine during training.

All ranks hold all requests; each computes its share of the batches, and one sum puts the results
together on every rank. Batches do not depend on the number of ranks, so neither do the numbers.
The output layer is asked for the labels only: no logits stand anywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from ds_train.engine.ranks import Ranks
from ds_train.evaluate.requests import BatchPlan, Request, ScoreBatch, plan_batches
from ds_train.evaluate.sharing import find_sharing
from ds_train.model.head import LanguageModel

Say = Callable[[str], Any]

_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")
_NO_LIMIT = 10**9
_DEFAULT_LENGTH = 2048

BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Tokens of a batch by device type: some hundred rows of a short question."""


class Served(Protocol):
    """A model behind DeepSpeed: the `Engine` of a run, or a `ShardedModel`."""

    @property
    def module(self) -> nn.Module:
        """`LanguageModel`"""
        ...

    def label_losses(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """`LanguageModel.forward`, per token."""
        ...

    def train_mode(self, training: bool) -> None:
        """Dropout on or off."""
        ...


Computes = Served | LanguageModel
"""What computes: behind DeepSpeed, or a whole model of this process."""


@dataclass(frozen=True)
class RequestScores:
    """What the model says to each request [n], the same on every rank."""

    logprob: NDArray[np.float64]
    """Sum over the continuation's tokens, in nats."""
    greedy: NDArray[np.bool_]
    """Every token of the continuation was the most likely one."""


class RequestScorer:
    """Scores requests; a collective call where there are several ranks.

    Args:
        model: what computes; a whole model has a copy on every rank.
        max_length: tokens that the model reads at most; longer requests lose their beginning.
        batch_tokens: tokens of a batch, padding included; by the device when None.
        say: told once whether requests share what they have in common, and why not.
    """

    def __init__(
        self,
        model: Computes,
        ranks: Ranks,
        *,
        max_length: int,
        batch_tokens: int | None = None,
        say: Say = lambda text: None,
    ) -> None:
        self.computes, self.ranks, self.max_length = model, ranks, max_length
        inner: Any = model if isinstance(model, LanguageModel) else model.module
        self.model: Any = inner.model
        """The Hugging Face or PEFT model inside."""
        self.device = next(inner.parameters()).device
        if not isinstance(model, LanguageModel):
            self.device = ranks.device
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, 4096)
        with self.evaluating():
            self.sharing, line = find_sharing(self.model, self._losses, max_length)
        say(f"scoring: {line}")

    def plan(self, requests: Sequence[Request]) -> BatchPlan:
        """The batches of some requests; DataError where one can't be scored."""
        return plan_batches(
            requests,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
            sharing=self.sharing,
        )

    def score(self, requests: Sequence[Request], progress: str | None = None) -> RequestScores:
        """Log-probability of every continuation; all ranks must ask the same.

        `progress` is the title of a bar in a terminal.
        """
        plan = self.plan(requests)
        logprob, wrong = np.zeros(len(requests)), np.zeros(len(requests))
        batches = plan.share(self.ranks.rank, self.ranks.world_size)
        with self.evaluating(), torch.no_grad():
            for batch, counts in _shown(batches, plan, self.ranks, progress):
                losses, correct = self._losses(batch)
                if not counts:
                    continue
                size = len(requests)
                logprob -= np.bincount(batch.owners, losses.double().cpu().numpy(), size)
                wrong += np.bincount(batch.owners, (~correct).double().cpu().numpy(), size)
        both = self.ranks.sum(torch.from_numpy(np.stack([logprob, wrong]))).numpy()
        return RequestScores(both[0], both[1] == 0)

    def _losses(self, batch: ScoreBatch) -> tuple[Tensor, Tensor]:
        """Loss of each label [n], and whether it is the most likely token."""
        arguments = {
            "places": self._put(batch.places),
            "position_ids": None if batch.position_ids is None else self._put(batch.position_ids),
            "attention_mask": None if batch.visible is None else self._mask(batch.visible),
            "num_supervised": len(batch.labels),
        }
        ids, labels = self._put(batch.input_ids), self._put(batch.labels)
        if not isinstance(self.computes, LanguageModel):
            return self.computes.label_losses(ids, labels, **arguments)
        losses, correct = self.computes(ids, labels, per_token=True, **arguments)
        return losses, correct

    def _mask(self, visible: NDArray[np.bool_]) -> Tensor:
        """[rows, 1, length, length] to be added to attention scores.

        As a number: a mask of truth values is made into this again in every layer.
        """
        dtype = next(self.model.parameters()).dtype
        hidden = self._put(~visible)[:, None]
        return torch.zeros(hidden.shape, dtype=dtype, device=self.device).masked_fill_(
            hidden, torch.finfo(dtype).min
        )

    def _put(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def evaluating(self) -> AbstractContextManager[None]:
        """Dropout off inside, and as it was before afterwards."""
        return _Evaluating(self.computes)


def readable_tokens(model: Any, tokenizer: Any) -> int:
    """Tokens that a model reads at most, less the virtual ones of its adapter.

    Where neither model nor tokenizer names a limit it is lm_eval's, 2,048.
    """
    text = model.config.get_text_config()
    named = [getattr(text, name, None) for name in _LENGTHS]
    limit = next((one for one in named if one is not None), tokenizer.model_max_length)
    peft = getattr(model, "peft_config", {}).values()
    virtual = sum(getattr(one, "num_virtual_tokens", None) or 0 for one in peft)
    return (int(limit) if limit < _NO_LIMIT else _DEFAULT_LENGTH) - virtual


class _Evaluating(AbstractContextManager[None]):
    """Dropout off inside, and as it was before afterwards."""

    def __init__(self, model: Computes) -> None:
        self._model = model
        module: Any = model if isinstance(model, LanguageModel) else model.module
        # of the model inside: our wrapper around it is made in training mode, whatever it holds
        self._was_training = bool(module.model.training)

    def __enter__(self) -> None:
        self._set(False)

    def __exit__(self, *error: object) -> None:
        self._set(self._was_training)

    def _set(self, training: bool) -> None:
        if not isinstance(self._model, LanguageModel):
            self._model.train_mode(training)
        else:
            self._model.train(training)


def _shown(
    batches: Iterable[tuple[ScoreBatch, bool]], plan: BatchPlan, ranks: Ranks, title: str | None
) -> Iterable[tuple[ScoreBatch, bool]]:
    """The batches behind a progress bar, in a terminal of the first rank."""
    if title is None or not ranks.is_main or not sys.stderr.isatty():
        return batches
    total = -(-len(plan) // ranks.world_size)
    return tqdm(batches, desc=title, total=total, unit="batch", leave=False)
