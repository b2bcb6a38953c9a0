"""What is right is done in silence; what a user must know is said."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ds_train.config.adapter import AdapterConfig
from ds_train.model.adapter import choose_trainable, untied_modules
from ds_train.model.quiet import quieten_libraries
from ds_train.model.tiny import save_tiny, tiny_model


def test_lora_on_gpt2_warns_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = str(save_tiny(tmp_path / "model", "gpt2"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = AdapterConfig(modules_to_save=["lm_head"])
    logger = logging.getLogger("transformers.modeling_utils")
    with warnings.catch_warnings(record=True) as seen, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        quieten_libraries()
        logger.addHandler(caplog.handler)
        adapted = choose_trainable(model, config, base=folder, seed=0)
        adapted.train()(input_ids=torch.tensor([[1, 5, 9, 0, 0]]))
        logger.removeHandler(caplog.handler)
    assert [str(one.message) for one in seen if one.category is UserWarning] == []
    assert caplog.messages == []


def test_untied_modules_are_those_that_share_their_weight() -> None:
    assert untied_modules(tiny_model("gpt2"), AdapterConfig(modules_to_save=["ln_f"])) == []
    whole = AdapterConfig(modules_to_save=["lm_head", "embed_tokens"])
    assert untied_modules(tiny_model("llama", tie_word_embeddings=False), whole) == []
    assert untied_modules(tiny_model("gemma2"), whole) == ["embed_tokens", "lm_head"]


def test_a_prompt_begins_with_the_text_as_the_recipes_tokenizer_reads_it(tmp_path: Path) -> None:
    """The model's folder has no tokenizer; model.tokenizer_name_or_path names another folder."""
    model = save_tiny(tmp_path / "model")
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).rename(tmp_path / "tokenizer" / name)
    config = AdapterConfig(method="prompt_tuning", num_virtual_tokens=2, prompt_init_text="ab")
    base = AutoModelForCausalLM.from_pretrained(model)
    words = base.get_input_embeddings().weight.detach().clone()
    adapted = choose_trainable(
        base, config, base=str(model), seed=0, tokenizer=str(tmp_path / "tokenizer")
    )
    (prompt,) = [value for value in adapted.parameters() if value.requires_grad]
    assert torch.isin(prompt, words).all()
