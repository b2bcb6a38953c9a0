"""Scoring with the model in training gives what `ds-train score` does, and leaves no trace."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_store import make_store
from torch import Tensor

from ds_train.data.batch import Batch
from ds_train.data.store import TokenStore
from ds_train.engine.ranks import Ranks
from ds_train.model.head import LanguageModel
from ds_train.model.tiny import tiny_model
from ds_train.score.losses import perplexity_of, score_store
from ds_train.train.refresh import sample_losses

PAD = 0


class OneOfSeveral(Ranks):
    """A rank whose sums are taken apart, to see what it has done by itself."""

    def sum(self, values: Tensor) -> Tensor:
        return values


class CountingEngine:
    """What scoring asks of an engine."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.num_forwards = model, 0
        self.modes: list[bool] = []

    def token_losses(self, batch: Batch) -> Any:
        self.num_forwards += 1
        assert not self.model.training and not torch.is_grad_enabled()
        return self.model(
            batch.input_ids,
            batch.labels,
            batch.position_ids,
            num_supervised=batch.num_supervised,
            per_token=True,
        )

    def train_mode(self, training: bool) -> None:
        self.modes.append(training)
        self.model.train(training)


@pytest.fixture(scope="module")
def store() -> TokenStore:
    """Forty samples, of some of which only the last tokens are learned from."""
    draw = np.random.default_rng(1)
    ids = [draw.integers(5, 200, draw.integers(2, 30)).tolist() for _ in range(40)]
    masks = [[int(i > 0 and i >= len(one) // 3) for i in range(len(one))] for one in ids]
    return make_store(ids, masks)


def _run(model: LanguageModel, store: TokenStore, ranks: Ranks, *, flatten: bool = False) -> Any:
    """As much of a run as scoring looks at; batches of up to 100 tokens."""
    train = SimpleNamespace(per_device_eval_batch_size=10, per_device_train_batch_size=1)
    config = SimpleNamespace(train=train, data=SimpleNamespace(max_length=10))
    return SimpleNamespace(
        config=config,
        data=SimpleNamespace(train=store),
        engine=CountingEngine(model),
        ranks=ranks,
        flatten=flatten,
        layout={"pad_token_id": PAD, "flatten": flatten},
    )


def _model() -> LanguageModel:
    return LanguageModel(tiny_model("llama", attention_dropout=0.5))


def test_values_are_those_of_ds_train_score(store: TokenStore) -> None:
    model = _model()
    expected = score_store(perplexity_of(model.eval(), store, PAD), store, 100, Ranks(0, 0, 1), "")
    run = _run(model.train(), store, Ranks(0, 0, 1))
    before = torch.get_rng_state()
    assert sample_losses(run) == pytest.approx(expected, rel=1e-6)
    assert run.engine.modes == [False, True] and model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("world_size", [2, 3, 50])
def test_ranks_divide_the_samples_and_make_as_many_forwards(
    store: TokenStore, world_size: int
) -> None:
    """Also where there are more ranks than batches: under ZeRO-3 every forward is collective."""
    model = _model()
    whole = sample_losses(_run(model, store, Ranks(0, 0, 1)))
    total, forwards = np.zeros(40), set()
    for rank in range(world_size):
        run = _run(model, store, OneOfSeveral(rank, rank, world_size))
        mine = sample_losses(run)
        assert not (total[mine > 0] > 0).any()
        total += mine
        forwards.add(run.engine.num_forwards)
    assert total.tolist() == whole.tolist()  # to the bit: the batches are the same
    assert len(forwards) == 1


def test_rows_of_a_flattening_model_are_told_apart(store: TokenStore) -> None:
    """The losses of a flattened batch, made from those of rows, give the same means."""
    model = _model()
    whole = sample_losses(_run(model, store, Ranks(0, 0, 1)))
    run = _run(model, store, Ranks(0, 0, 1), flatten=True)

    def token_losses(batch: Batch) -> tuple[Tensor, None]:
        """What varlen attention gives: each document by itself."""
        assert batch.position_ids is not None and batch.input_ids.shape[0] == 1
        starts = torch.nonzero(batch.position_ids[0] == 0).flatten().tolist()
        losses = torch.zeros(batch.input_ids.shape)
        for start, stop in zip(starts, [*starts[1:], batch.input_ids.shape[1]], strict=True):
            labels = batch.labels[:, start:stop]
            losses[:, start:stop], _ = model(
                batch.input_ids[:, start:stop],
                labels,
                num_supervised=int((labels >= 0).sum()),
                per_token=True,
            )
        return losses, None

    run.engine.token_losses = token_losses
    assert sample_losses(run) == pytest.approx(whole, rel=1e-6)
