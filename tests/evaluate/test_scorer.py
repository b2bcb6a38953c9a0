"""Scores of requests equal those of a plain loop over the model's own logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from ds_train.engine.ranks import Ranks
from ds_train.evaluate.prefix_rows import NOTHING_SHARED
from ds_train.evaluate.requests import Request
from ds_train.evaluate.scorer import RequestScorer
from ds_train.model.head import LanguageModel
from ds_train.model.tiny import tiny_model

ALONE = Ranks(0, 0, 1)
SHARES = "what requests begin with in common is computed once"
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {"sliding_window": 48}),
    ("mixtral", {}),
    ("gemma2", {}),
    ("gemma3_text", {}),
    ("gpt2", {}),
    ("gpt_neox", {}),
    ("opt", {}),
    ("cohere", {}),
    ("granite", {}),
    ("phi", {}),
    ("olmo2", {}),
]
WHOLE = [
    ("bloom", "the model does not take it"),
    ("mpt", "a token's loss differs by"),
    ("mamba", "it has layers of linear_attention"),
    ("rwkv", "a token's loss differs by"),
]


def requests(seed: int = 1) -> list[Request]:
    """Candidates of one to seven tokens after contexts of 5, 20 and 60."""
    draw = np.random.default_rng(seed)
    contexts = [draw.integers(3, 250, length).tolist() for length in (5, 20, 60)]
    return [
        Request(context, draw.integers(3, 250, length).tolist())
        for context in contexts
        for length in (1, 3, 7, 2)
    ]


def truth(model: Any, asked: list[Request]) -> tuple[NDArray[np.float64], list[bool]]:
    """Each request forwarded alone, with all its logits."""
    sums, greedy = [], []
    for request in asked:
        ids = torch.tensor([[*request.context, *request.continuation]])
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
        size, target = len(request.continuation), ids[0, -len(request.continuation) :]
        last = log_p[-size - 1 : -1]
        sums.append(float(last.gather(1, target[:, None]).sum()))
        greedy.append(bool((last.argmax(-1) == target).all()))
    return np.array(sums), greedy


def scorer(model: Any, said: list[str] | None = None, **settings: Any) -> RequestScorer:
    say = [].append if said is None else said.append
    return RequestScorer(LanguageModel(model), ALONE, max_length=200, say=say, **settings)


@pytest.mark.parametrize(
    ("family", "settings", "attention"),
    [
        (family, settings, attention)
        for family, settings in FAMILIES
        for attention in ("sdpa", "eager")
        if (family, attention) != ("gemma2", "sdpa")  # transformers has no such attention
    ],
)
def test_scores_equal_the_models_own(family: str, settings: dict[str, Any], attention: str) -> None:
    model: Any = tiny_model(family, **settings).eval()
    model.set_attn_implementation(attention)
    asked = requests()
    expected, _ = truth(model, asked)
    said: list[str] = []
    scores = scorer(model, said)
    result = scores.score(asked)
    assert SHARES in said[0]
    plan = scores.plan(asked)
    assert plan.num_tokens < 0.8 * plan.num_request_tokens
    assert result.logprob == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(("family", "why"), WHOLE)
def test_an_architecture_that_can_not_share_is_scored_all_the_same(family: str, why: str) -> None:
    model: Any = tiny_model(family).eval()
    asked = requests()
    expected, _ = truth(model, asked)
    said: list[str] = []
    result = scorer(model, said).score(asked)
    assert f"every request is computed whole: {why}" in said[0]
    assert result.logprob == pytest.approx(expected, abs=2e-4)


def test_greedy_means_that_every_token_is_the_most_likely_one() -> None:
    model: Any = tiny_model("llama").eval()
    asked = requests()
    for request in asked[:6]:  # of these the model's own choice is asked for
        ids = list(request.context)
        for place in range(len(request.continuation)):
            with torch.no_grad():
                best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            request.continuation[place] = best  # type: ignore[index]
            ids.append(best)
    result = scorer(model).score(asked)
    expected, greedy = truth(model, asked)
    assert result.greedy.tolist() == greedy
    assert greedy[:6] == [True] * 6
    assert not all(greedy)
    assert result.logprob == pytest.approx(expected, abs=2e-4)


def test_sharing_changes_nothing_but_rounding() -> None:
    scores = scorer(tiny_model("llama"))
    asked = requests(2)
    shared = scores.score(asked)
    scores.sharing = NOTHING_SHARED
    whole = scores.score(asked)
    assert shared.logprob == pytest.approx(whole.logprob, abs=1e-4)
    assert (shared.greedy == whole.greedy).all()


def test_what_does_not_fit_is_cut_from_the_left() -> None:
    model: Any = tiny_model("llama").eval()
    short = RequestScorer(LanguageModel(model), ALONE, max_length=10)
    asked = requests()
    cut = [
        Request([*r.context, *r.continuation][-11 : -len(r.continuation)], r.continuation)
        for r in asked
    ]
    assert short.score(asked).logprob == pytest.approx(truth(model, cut)[0], abs=2e-4)


@pytest.mark.parametrize(
    ("config", "shares"),
    [
        (LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False), True),
        (PromptTuningConfig(num_virtual_tokens=3), False),
        (PrefixTuningConfig(num_virtual_tokens=3), False),
    ],
)
def test_adapters(config: Any, shares: bool) -> None:
    config.task_type = "CAUSAL_LM"
    torch.manual_seed(0)
    model: Any = get_peft_model(tiny_model("llama", tie_word_embeddings=False), config).eval()
    asked = requests()
    sums = []
    for request in asked:
        ids = torch.tensor([[*request.context, *request.continuation]])
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
        size = len(request.continuation)
        last = log_p[-size - 1 : -1]
        sums.append(float(last.gather(1, ids[0, -size:, None]).sum()))
    said: list[str] = []
    result = scorer(model, said).score(asked)
    assert (SHARES in said[0]) == shares
    assert shares or "virtual tokens" in said[0]
    assert result.logprob == pytest.approx(np.array(sums), abs=2e-4)


def test_dropout_is_off_while_scoring_and_as_before_afterwards() -> None:
    model: Any = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).train()
    language_model = LanguageModel(model)
    scores = RequestScorer(language_model, ALONE, max_length=200)
    first, second = (scores.score(requests()).logprob for _ in range(2))
    assert (first == second).all()
    assert language_model.training
    assert not scorer(tiny_model("llama").eval()).model.training


def test_half_precision_shares_too() -> None:
    model: Any = tiny_model("llama").to(torch.bfloat16).eval()
    said: list[str] = []
    scores = scorer(model, said)
    assert SHARES in said[0]
    asked = requests()
    assert scores.score(asked).logprob == pytest.approx(truth(model, asked)[0], abs=0.5)


def test_the_batch_size_changes_nothing_but_rounding() -> None:
    asked = requests(3)
    large, small = (
        scorer(tiny_model("llama"), batch_tokens=size).score(asked) for size in (4096, 1)
    )
    assert large.logprob == pytest.approx(small.logprob, abs=1e-4)
