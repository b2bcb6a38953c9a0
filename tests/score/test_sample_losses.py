"""Perplexity and IFD against a plain loop of torch, one sample at a time, from the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_run import add_checkpoint, make_run
from scored_recipe import book_of, prepared, scored_recipe, silent
from small_store import make_store
from torch.nn.functional import cross_entropy

from ds_train.config.run import RunConfig
from ds_train.curriculum.scores import open_scores
from ds_train.data.store import TokenStore
from ds_train.engine.ranks import Ranks
from ds_train.errors import DataError, ModelError
from ds_train.model.head import LanguageModel
from ds_train.model.tiny import save_tiny, tiny_model
from ds_train.score.losses import answers_alone, ifd_of, length_batches, perplexity_of, score_store
from ds_train.score.model import score_with_model

ALONE = Ranks(0, 0, 1)
PAD, BOS, EOS = 0, 1, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def store() -> TokenStore:
    """Prompts and answers of many lengths; some answers of one token, some in two parts."""
    random = np.random.default_rng(3)
    ids, masks = [], []
    for number in range(40):
        prompt, answer = random.integers(1, 20), random.integers(1, 12)
        tokens = random.integers(3, 250, prompt + answer)
        mask = [0] * prompt + [1] * answer
        if number % 4 == 0:
            tokens = np.concatenate([tokens, random.integers(3, 250, 5)])
            mask += [0, 0, 1, 0, 1]
        ids.append([BOS, *tokens.tolist()])
        masks.append([0, *mask])
    return make_store(ids, masks)


@torch.no_grad()
def token_losses(model: Any, ids: list[int]) -> list[float]:
    """-log p of every token but the first, in the order of the sample."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    return cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()


def plain_cond(model: Any, store: TokenStore, index: int) -> float:
    losses = token_losses(model, store.tokens(index).tolist())
    mask = store.mask(index)[1:].tolist()
    return float(np.mean([loss for loss, learned in zip(losses, mask, strict=True) if learned]))


def plain_alone(model: Any, store: TokenStore, index: int, start_id: int) -> float:
    answer = [
        token
        for token, learned in zip(store.tokens(index).tolist(), store.mask(index), strict=True)
        if learned
    ]
    return float(np.mean(token_losses(model, [start_id, *answer])))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_perplexity_is_the_mean_loss_of_the_answer(kind: str, store: TokenStore) -> None:
    model = tiny_model(kind)
    expected = [plain_cond(model, store, index) for index in range(store.num_samples)]
    measure = perplexity_of(LanguageModel(model), store, PAD)
    for max_tokens in (1, 100, 10_000):
        values = score_store(measure, store, max_tokens, ALONE, "perplexity")
        assert values == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("start_id", [BOS, EOS])
def test_ifd_compares_the_same_tokens(start_id: int, store: TokenStore) -> None:
    model = tiny_model("llama")
    expected = [
        np.exp(plain_cond(model, store, index) - plain_alone(model, store, index, start_id))
        for index in range(store.num_samples)
    ]
    measure = ifd_of(LanguageModel(model), store, PAD, start_id)
    values = score_store(measure, store, 200, ALONE, "ifd")
    assert values == pytest.approx(expected, rel=1e-5)


def test_both_means_hold_every_answer_token(store: TokenStore) -> None:
    """Also the first one, which is predicted from the start token when it stands alone."""
    samples = np.arange(store.num_samples)
    alone = answers_alone(store, samples, EOS)
    assert alone.supervised.tolist() == store.supervised.tolist()
    for index in samples.tolist():
        assert alone.tokens(index)[0] == EOS and not alone.mask(index)[0]
        assert alone.mask(index)[1:].all()
        answer = store.tokens(index)[store.mask(index)].tolist()
        assert alone.tokens(index)[1:].tolist() == answer
        assert len(answer) == store.supervised[index]


def test_an_answer_without_an_instruction_has_ifd_1() -> None:
    """BOS and the answer, with and without what is not learned, are the same text."""
    plain = make_store([[BOS, 10, 11, 12]], [[0, 1, 1, 1]])
    measure = ifd_of(LanguageModel(tiny_model("llama")), plain, PAD, BOS)
    assert score_store(measure, plain, 100, ALONE, "ifd").tolist() == [1.0]


def test_batches_hold_each_sample_once_and_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(2, 100, 500)
    batches = list(length_batches(lengths, 256))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    longest = [int(lengths[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch in batches:
        width = -(-int(lengths[batch].max()) // 8) * 8
        assert len(batch) * width <= 256 or len(batch) == 1
    assert [batch.tolist() for batch in length_batches(np.array([9, 300, 5]), 8)] == [[1], [0], [2]]


class OneOfTwo(Ranks):
    """A rank among two whose sums are taken apart, to see what it has done by itself."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


def test_ranks_share_the_batches(store: TokenStore) -> None:
    """What two ranks add up is to the bit what one computes."""
    measure = perplexity_of(LanguageModel(tiny_model("llama")), store, PAD)
    whole = score_store(measure, store, 100, ALONE, "loss")
    parts = [score_store(measure, store, 100, OneOfTwo(rank, rank, 2), "loss") for rank in (0, 1)]
    assert (parts[0] + parts[1]).tolist() == whole.tolist()
    assert np.count_nonzero(parts[0]) + np.count_nonzero(parts[1]) == store.num_samples
    assert min(np.count_nonzero(part) for part in parts) > 5


# From a recipe


def scored(config: RunConfig) -> list[float]:
    book = book_of(config)
    for spec in book.specs:
        score_with_model(book, spec, ALONE, silent)
    return open_scores(config, book.prepared, silent).values.tolist()


@pytest.mark.parametrize("metric", ["perplexity", "loss", "ifd"])
def test_a_recipe(metric: str, folder: Path, tmp_path: Path) -> None:
    config = scored_recipe(folder, tmp_path, metric)
    train, model = prepared(config).train, tiny_model("llama")
    expected = [plain_cond(model, train, index) for index in range(60)]
    if metric == "ifd":
        alone = [plain_alone(model, train, index, BOS) for index in range(60)]
        expected = np.exp(np.array(expected) - alone).tolist()
    assert scored(config) == pytest.approx(expected, rel=1e-5)


def test_loss_is_that_of_the_model_the_run_starts_from(folder: Path, tmp_path: Path) -> None:
    """With an adapter that is continued it is base and adapter, not the base."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(tiny_model("llama"), lora)  # type: ignore[arg-type]
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    base = scored(scored_recipe(folder, tmp_path, "loss"))
    sections = {"adapter": {"method": "lora", "path": str(tmp_path / "adapter")}}
    config = scored_recipe(folder, tmp_path, "loss", sections=sections)
    train = prepared(config).train
    expected = [plain_cond(adapted.eval(), train, index) for index in range(60)]
    assert scored(config) == pytest.approx(expected, rel=1e-5)
    assert base != pytest.approx(expected, rel=1e-3)


def test_a_run_measures_what_it_has_learned(folder: Path, tmp_path: Path) -> None:
    """So the curriculum of a second run can follow what a first one finds hard."""
    learned = tiny_model("llama", seed=5)
    paths = make_run(tmp_path / "first", folder, "full")
    add_checkpoint(paths, 50, dict(learned.named_parameters()))
    config = with_model(scored_recipe(folder, tmp_path, "perplexity"), paths.root)
    train = prepared(config).train
    expected = [plain_cond(learned, train, index) for index in range(60)]
    assert scored(config) == pytest.approx(expected, rel=1e-5)
    add_checkpoint(paths, 60, dict(tiny_model("llama", seed=6).named_parameters()))
    with pytest.raises(DataError, match="have not been scored with this model"):
        open_scores(config, prepared(config), silent)


def with_model(config: RunConfig, model: Path) -> RunConfig:
    """The recipe with another model that measures."""
    assert config.curriculum is not None
    section = config.curriculum.model_copy(update={"metric_model": str(model)})
    return config.model_copy(update={"curriculum": section})


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"a"', '"@@"'))
    config = with_model(scored_recipe(folder, tmp_path, "perplexity"), other)
    with pytest.raises(ModelError, match=r"has another tokenizer than .*; name a model with the"):
        scored(config)


def test_ifd_of_text_without_instructions_is_refused(folder: Path, tmp_path: Path) -> None:
    config = scored_recipe(folder, tmp_path, "ifd", [{"text": "abc"}, {"text": "de"}])
    with pytest.raises(DataError, match="here every token is learned from"):
        scored(config)


def test_a_model_that_reads_less(folder: Path, tmp_path: Path) -> None:
    short = save_tiny(tmp_path / "short", max_position_embeddings=4)
    config = with_model(scored_recipe(folder, tmp_path, "perplexity"), short)
    with pytest.raises(ModelError, match=r"reads at most 4 positions, and the longest sample has"):
        scored(config)
