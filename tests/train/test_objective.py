"""What a step minimises: sums that no division into micro-batches changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from candidate_stores import candidate_store, many_examples
from torch import Tensor

from ds_train.config.fewshot import LossesConfig
from ds_train.data.batch import Batch, collate
from ds_train.data.candidate_batch import collate_candidates
from ds_train.fewshot.candidates import num_gold_tokens
from ds_train.model.head import LanguageModel
from ds_train.model.tiny import tiny_model
from ds_train.train.objective import (
    ChoiceObjective,
    Objective,
    TokenObjective,
    loss_of,
    means,
)

STORE = candidate_store(many_examples(6, 4))
ROWS = [np.arange(4 * number, 4 * number + 4) for number in range(6)]


class PlainEngine:
    """What an objective asks of the engine, without DeepSpeed."""

    def __init__(self) -> None:
        self.model = LanguageModel(tiny_model("llama"))

    def forward(self, batch: Batch) -> Tensor:
        loss_sum, _ = self.model(batch.input_ids, batch.labels, batch.position_ids)
        return loss_sum

    def logprobs(self, batch: Batch) -> Tensor:
        values, _ = self.model(batch.input_ids, batch.labels, batch.position_ids, logprobs=True)
        return values


def run(objective: Objective, batches: list[Batch]) -> tuple[float, dict[str, float], Tensor]:
    """(loss, named means, gradient of one weight) of a step in these micro-batches."""
    engine: Any = PlainEngine()
    total = torch.zeros(len(objective.parts), dtype=torch.float64)
    for batch in batches:
        sums = objective.sums(engine, batch)
        loss_of(objective.parts, sums).backward()
        total += sums.detach()
    weight = engine.model.model.model.layers[0].mlp.down_proj.weight
    return float(loss_of(objective.parts, total)), means(objective.parts, total), weight.grad


def micro_batches(size: int, rows: list[np.ndarray] = ROWS) -> list[Batch]:
    return [
        collate_candidates(STORE, rows[start : start + size], pad_token_id=0)
        for start in range(0, len(rows), size)
    ]


@pytest.mark.parametrize("lm_mean", ["example", "token"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_add_up(lm_mean: Any, size: int) -> None:
    config = LossesConfig(lm_mean=lm_mean, unlikelihood=0.5)
    objective = ChoiceObjective(config, len(ROWS), num_gold_tokens(STORE, ROWS))
    whole, parts, gradient = run(objective, micro_batches(6))
    split, again, other = run(objective, micro_batches(size))
    assert split == pytest.approx(whole, rel=1e-6)
    assert again == pytest.approx(parts, rel=1e-6)
    torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-7)
    weighted = parts["language_modelling"] + 0.5 * parts["unlikelihood"]
    assert whole == pytest.approx(weighted + parts["length_normalised"], rel=1e-6)


def test_padding_adds_nothing() -> None:
    none = np.empty(0, dtype=np.int64)
    objective = ChoiceObjective(LossesConfig(), len(ROWS), num_gold_tokens(STORE, ROWS))
    whole, _, gradient = run(objective, micro_batches(6))
    padded, _, other = run(objective, micro_batches(3, [*ROWS, none, none, none]))
    assert padded == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-7)


def test_the_right_answers_alone_by_token_are_plain_training() -> None:
    assert STORE.examples is not None
    gold = [np.array([sample]) for sample in np.flatnonzero(STORE.examples.gold)]
    num_tokens = num_gold_tokens(STORE, gold)
    config = LossesConfig(unlikelihood=0, length_normalised=0, lm_mean="token")
    choice = run(ChoiceObjective(config, len(gold), num_tokens), micro_batches(2, gold))
    plain = run(
        TokenObjective(num_tokens),
        [collate(STORE, gold[start : start + 2], pad_token_id=0) for start in range(0, 6, 2)],
    )
    assert choice[0] == pytest.approx(plain[0], rel=1e-6)
    torch.testing.assert_close(choice[2], plain[2], rtol=1e-4, atol=1e-7)
    assert plain[1] == {} and list(choice[1]) == ["language_modelling"]


def test_a_loss_without_weight_is_measured_and_has_no_gradient() -> None:
    config = LossesConfig(unlikelihood=0.0)
    objective = ChoiceObjective(config, len(ROWS), num_gold_tokens(STORE, ROWS))
    loss, parts, _ = run(objective, micro_batches(6))
    assert parts["unlikelihood"] > 0
    assert loss == pytest.approx(parts["language_modelling"] + parts["length_normalised"])
    assert parts["rank_accuracy"] in [count / 6 for count in range(7)]
