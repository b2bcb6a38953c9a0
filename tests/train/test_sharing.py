"""The trial at the start: ranks whose shared rows do not have the losses of whole ones."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ds_train.data.slice import slice_batch
from ds_train.engine.ranks import Ranks
from ds_train.errors import ConfigError
from ds_train.model.head import LanguageModel
from ds_train.model.shared_rows import share_rows
from ds_train.train.sharing import check_shared_rows


class Alone(Ranks):
    """The second rank of two, without the first."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values.clone()


def engine_of(exchange: Callable[[torch.Tensor, torch.Tensor], Any]) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=61,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = LanguageModel(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))
    shared = share_rows(model.model, 2, exchange)

    def token_losses(batch: Any) -> Any:
        shared.rows = batch.whole
        return model(batch.input_ids, batch.labels, batch.position_ids, per_token=True)

    return SimpleNamespace(
        shared=shared,
        ranks=Alone(1, 1, 2, 2),
        module=model,
        token_losses=token_losses,
        share=lambda batch: slice_batch(batch, 1, 2),
        train_mode=model.train,
    )


def test_another_loss_is_refused() -> None:
    engine = engine_of(lambda received, sent: received.copy_(sent))
    with pytest.raises(ConfigError, match=r"\(llama: 2 of 2 layers exchange, a token's loss moves"):
        check_shared_rows(engine)


def test_a_loss_that_is_no_number_is_refused() -> None:
    engine = engine_of(lambda received, sent: received.fill_(torch.nan))
    with pytest.raises(ConfigError, match="moves by up to nan"):
        check_shared_rows(engine)


def test_a_layer_that_does_not_exchange_is_refused() -> None:
    engine = engine_of(lambda received, sent: received.copy_(sent))
    del engine.module.model.model.layers[1].self_attn.shared_rows
    with pytest.raises(ConfigError, match=r"1 of 2 layers exchange"):
        check_shared_rows(engine)
