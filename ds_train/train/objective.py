"""What a step minimises: sums over the whole step, each divided by a count known beforehand.

    loss = sum_i  weight_i x (sum over ranks and micro-batches of part i) / count_i

Tokens: one part, the sum of the token losses over the number of supervised tokens. Candidate
answers (T-Few): language modelling, unlikelihood and length-normalised losses, over the number of
examples; with `lm_mean: token` the first is the sum over the right answers' tokens, divided by the
number of these. Either way nothing is averaged over ranks or micro-batches, so no layout of a step
changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ds_train.config.fewshot import LossesConfig
from ds_train.data.batch import Batch
from ds_train.fewshot.candidates import scores_wrong_answers
from ds_train.model.choice_losses import choice_losses
from ds_train.ops.reference import IGNORE

if TYPE_CHECKING:
    from ds_train.engine.engine import Engine


@dataclass(frozen=True)
class Part:
    """One sum of a step."""

    name: str
    """Of its mean in the step's record; "" where that would be the loss itself."""
    weight: float
    """0 for what is only measured."""
    count: int
    """What the sum is divided by; at least 1."""


@dataclass(frozen=True)
class TokenObjective:
    """Cross-entropy of the supervised tokens, each with the same weight."""

    num_supervised: int
    """Of the whole step, over all ranks; at least 1."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The one part."""
        return (Part("", 1.0, self.num_supervised),)

    def sums(self, engine: Engine, batch: Batch) -> Tensor:
        """[1] fp32, differentiable: the loss sum of a micro-batch."""
        return engine.forward(batch)[None]


@dataclass(frozen=True)
class ChoiceObjective:
    """The losses of T-Few over the candidates of each example."""

    config: LossesConfig
    num_examples: int
    """Of the whole step, over all ranks; at least 1."""
    num_gold_tokens: int
    """Supervised tokens of the right answers of these."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The three losses, and how often the right answer was the likeliest of those scored."""
        config, count = self.config, self.num_examples
        by_token = config.lm_mean == "token"
        first = self.num_gold_tokens if by_token else count
        parts = [Part("language_modelling", config.language_modelling, first)]
        if scores_wrong_answers(config):
            parts += [
                Part("unlikelihood", config.unlikelihood, count),
                Part("length_normalised", config.length_normalised, count),
                Part("rank_accuracy", 0.0, count),
            ]
        return tuple(parts)

    def sums(self, engine: Engine, batch: Batch) -> Tensor:
        """[parts] fp32, differentiable: sums over the examples of a micro-batch."""
        assert batch.candidates is not None
        losses = choice_losses(engine.logprobs(batch), batch.labels != IGNORE, batch.candidates)
        by_token = self.config.lm_mean == "token"
        first = losses.language_modelling_sum if by_token else losses.language_modelling
        each = [first, losses.unlikelihood, losses.length_normalised, losses.right.float()]
        return torch.stack([one.sum() for one in each[: len(self.parts)]])


Objective = TokenObjective | ChoiceObjective


def loss_of(parts: Sequence[Part], sums: Tensor) -> Tensor:
    """The loss [] that sums [parts] make: a micro-batch's share of the step's, or all of it."""
    terms = [
        part.weight * one / part.count
        for part, one in zip(parts, sums.unbind(), strict=True)
        if part.weight
    ]
    return torch.stack(terms).sum()


def means(parts: Sequence[Part], sums: Tensor) -> dict[str, float]:
    """Means of the named parts over a whole step, by name."""
    return {
        part.name: one / part.count
        for part, one in zip(parts, sums.tolist(), strict=True)
        if part.name
    }
