"""Texts as the model's own hidden states: the same whatever stands beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from ds_train.engine.ranks import Ranks
from ds_train.evaluate.embed import embed_texts
from ds_train.evaluate.scorer import RequestScorer
from ds_train.model.head import LanguageModel
from ds_train.model.tiny import byte_tokenizer, tiny_model

TEXTS = ["a film", "", "a longer text about bees", "a film", "x" * 90]


def scorer_of(model: Any, batch_tokens: int = 2048, max_length: int = 64) -> RequestScorer:
    return RequestScorer(
        LanguageModel(model), Ranks(0, 0, 1), max_length=max_length, batch_tokens=batch_tokens
    )


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_mean_of_the_last_hidden_states(model_type: str) -> None:
    model: Any = tiny_model(model_type)
    tokenizer = byte_tokenizer()
    found = embed_texts(scorer_of(model), tokenizer, TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)[-63:]
        model.eval()
        with torch.no_grad():
            inputs = torch.tensor([[tokenizer.bos_token_id, *ids]])
            hidden = model(inputs, output_hidden_states=True).hidden_states[-1][0]
        mean = hidden[1:].mean(dim=0) if ids else hidden[0]
        np.testing.assert_allclose(vector, mean.numpy(), atol=2e-5)


def test_batches_do_not_matter() -> None:
    model = tiny_model("llama")
    one = embed_texts(scorer_of(model, batch_tokens=1), byte_tokenizer(), TEXTS)
    many = embed_texts(scorer_of(model), byte_tokenizer(), TEXTS)
    np.testing.assert_allclose(one, many, atol=2e-5)
    # the same text has the same vector, to the bit, so that ties go by index
    assert np.array_equal(many[0], many[3])


def test_adapters_count_and_virtual_tokens_do_not_get_in_the_way() -> None:
    plain = embed_texts(scorer_of(tiny_model("llama")), byte_tokenizer(), TEXTS)
    lora = get_peft_model(
        tiny_model("llama"), LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    assert not np.allclose(embed_texts(scorer_of(lora), byte_tokenizer(), TEXTS), plain, atol=1e-2)
    prompt = get_peft_model(
        tiny_model("llama"), PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
    )
    found = embed_texts(scorer_of(prompt), byte_tokenizer(), TEXTS)
    assert found.shape == plain.shape
    alone = embed_texts(scorer_of(prompt, batch_tokens=1), byte_tokenizer(), TEXTS)
    np.testing.assert_allclose(found, alone, atol=2e-5)


def test_training_mode_is_put_back() -> None:
    model = tiny_model("llama").train()
    embed_texts(scorer_of(model), byte_tokenizer(), TEXTS[:1])
    assert model.training
