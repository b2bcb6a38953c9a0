"""What lm_eval gets from our adapter equals what it gets from its own `HFLM`, on the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ds_train.engine.ranks import Ranks
from ds_train.errors import DataError, ModelError
from ds_train.model.head import LanguageModel

pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'ds-train[eval]')")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from ds_train.evaluate.scorer import RequestScorer, readable_tokens
from ds_train.evaluate.task_model import TaskModel

CONTEXT = "Question: what has three letters?\nAnswer:"
PAIRS = [
    (CONTEXT, " cat"),
    (CONTEXT, " the long answer that nobody wants"),
    (CONTEXT, " cats"),
    (CONTEXT, "é"),
    (CONTEXT + "  ", "two spaces moved"),
    ("", "no context at all"),
    ("", "\n"),
    ("x" * 400, " longer than the model reads"),
    (CONTEXT * 6, " cut from the left too"),
    ("<s>begins with the token itself", " yes"),
]
TEXTS = ["short", "A text that is longer than one window. " * 20, "<s> opens it"]


@pytest.fixture(scope="module")
def both(tiny_base: Path) -> tuple[TaskModel, Any]:
    """Our adapter and lm_eval's own, on the same weights."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    ours: Any = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    theirs: Any = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    scorer = RequestScorer(
        LanguageModel(ours), Ranks(0, 0, 1), max_length=readable_tokens(ours, tokenizer)
    )
    return TaskModel(scorer, tokenizer), HFLM(
        pretrained=theirs, tokenizer=tokenizer, batch_size=4, device="cpu"
    )


def asked(kind: Any, arguments: list[tuple[str, ...]]) -> list[Instance]:
    return [
        Instance(kind, {}, one, index, ("some_task", index, 1))
        for index, one in enumerate(arguments)
    ]


def test_both_read_as_much(both: tuple[TaskModel, Any]) -> None:
    ours, theirs = both
    assert ours.max_length == theirs.max_length == 256
    assert ours.prefix_token_id == theirs.prefix_token_id


@pytest.mark.parametrize("text", [CONTEXT, "<s>begins with it", " a", ""])
def test_texts_become_the_same_tokens(both: tuple[TaskModel, Any], text: str) -> None:
    ours, theirs = both
    assert ours.tok_encode(text) == theirs.tok_encode(text)
    assert ours.tok_encode(text, False) == theirs.tok_encode(text, add_special_tokens=False)


def test_pairs_become_the_same_tokens(both: tuple[TaskModel, Any]) -> None:
    ours, theirs = both
    for context, text in PAIRS:
        if context:
            assert ours._encode_pair(context, text) == theirs._encode_pair(context, text)


def test_log_likelihoods_are_equal(both: tuple[TaskModel, Any]) -> None:
    ours, theirs = both
    mine = ours.loglikelihood(asked("loglikelihood", PAIRS))
    other = theirs.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)
    assert [value for value, _ in mine] == pytest.approx([v for v, _ in other], abs=1e-3)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in other]


def test_rolling_log_likelihoods_are_equal(both: tuple[TaskModel, Any]) -> None:
    ours, theirs = both
    requests = asked("loglikelihood_rolling", [(text,) for text in TEXTS])
    mine = ours.loglikelihood_rolling(requests)
    other = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert mine == pytest.approx(other, abs=2e-3)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("", "a candidate answer is empty"),
        (" ", "a candidate answer is empty"),
        ("x" * 300, "has 300 tokens, and the model reads at most 256"),
    ],
)
def test_an_answer_that_can_not_be_scored_names_its_document(
    both: tuple[TaskModel, Any], answer: str, words: str
) -> None:
    with pytest.raises(DataError, match="task some_task, document 1: ") as caught:
        both[0].loglikelihood(asked("loglikelihood", [PAIRS[0], (CONTEXT, answer)]))
    assert words in str(caught.value)


def test_generation_is_refused_where_nobody_generates(both: tuple[TaskModel, Any]) -> None:
    with pytest.raises(ModelError, match="while it trains"):
        both[0].generate_until(asked("generate_until", [(CONTEXT, {})]))


def test_the_scorer_keeps_the_models_mode(both: tuple[TaskModel, Any]) -> None:
    both[0].loglikelihood(asked("loglikelihood", PAIRS[:1]))
    assert not both[0].scorer.model.training
    assert torch.is_grad_enabled()
