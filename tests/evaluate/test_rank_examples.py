"""Rank classification against a plain loop: every answer forwarded alone, the best mean wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from candidate_stores import Example, candidate_store, many_examples
from small_store import store_of_lengths

from ds_train.engine.ranks import Ranks
from ds_train.errors import DataError
from ds_train.evaluate.loss import evaluate_command
from ds_train.evaluate.ranking import rank_examples
from ds_train.evaluate.scorer import RequestScorer
from ds_train.model.head import LanguageModel
from ds_train.model.tiny import tiny_model

TEXTS = ["a b", "c d e", "x", "what now", "so it is", "no", "one two three", "red"]


def scorer(model: Any) -> RequestScorer:
    return RequestScorer(LanguageModel(model), Ranks(0, 0, 1), max_length=64)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_equals_a_plain_loop(family: str) -> None:
    examples = many_examples(12, 4, num_templates=2)
    store = candidate_store(examples)
    model = tiny_model(family).eval()
    right: dict[str, list[float]] = {"tokens": [], "none": [], "chars": []}
    for one in examples:
        for prompt in one.prompts:
            sums = []
            for answer in one.answers:
                ids = torch.tensor([*prompt, *answer])
                with torch.no_grad():
                    logits = model(input_ids=ids[None]).logits[0, :-1]
                found = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0]
                sums.append(float(found[-len(answer) :].sum()))
            lengths = np.array([len(answer) for answer in one.answers])  # a letter for each token
            best = {"tokens": np.array(sums) / lengths, "none": np.array(sums)}
            for name, scores in (best | {"chars": best["tokens"]}).items():
                right[name].append(float(scores.argmax() == one.gold))
    result = rank_examples(scorer(tiny_model(family)), store, ["all"])
    for name, hits in right.items():
        assert result[f"rank_accuracy_{name}"] == pytest.approx(np.mean(hits))
    assert result["rank_examples"] == 12 and result["rank_chance"] == pytest.approx(0.25)
    assert result["sources"]["all"]["rank_accuracy"] == result["rank_accuracy"]


def test_the_first_so_many_examples() -> None:
    store = candidate_store(many_examples(12, 3))
    model = scorer(tiny_model("llama"))
    part = rank_examples(model, store, max_examples=5)
    whole = rank_examples(model, store.select(np.arange(15)))
    assert part["rank_examples"] == 5 and part == whole
    alone = [Example([[5, 6]], [[7]], 0)] * 3  # these have nothing to choose from
    mixed = candidate_store([*alone, *many_examples(12, 3)])
    assert rank_examples(model, mixed, max_examples=5) == whole


def test_nothing_to_choose_from_is_said() -> None:
    with pytest.raises(DataError, match="no example of the train data has answers"):
        rank_examples(scorer(tiny_model("llama")), store_of_lengths([3, 4]), part="the train data")


@pytest.fixture(scope="module")
def recipe(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled sources and one of plain completions, held out as they are."""
    folder = tmp_path_factory.mktemp("ranked")
    sources = []
    for name, words in (("two", ["yes", "no"]), ("three", ["red", "green", "blue"])):
        rows = [
            {"text": text, "label": words[number % len(words)]} for number, text in enumerate(TEXTS)
        ]
        sources.append({"name": name, "format": "classification", "rows": rows})
    rows = [{"prompt": text, "completion": " done"} for text in TEXTS]
    sources.append({"name": "plain", "format": "prompt_completion", "rows": rows})
    for one in sources:
        one["path"] = str(folder / f"{one['name']}.jsonl")
        lines = [json.dumps(row) + "\n" for row in one.pop("rows")]
        Path(one["path"]).write_text("".join(lines))
    file = folder / "recipe.yaml"
    data = {
        "train": sources,
        "validation": {"sources": [{**one, "name": f"{one['name']}_test"} for one in sources]},
        "max_length": 64,
        "num_workers": 1,
        "cache_dir": str(folder / "cache"),
    }
    raw = {
        "output_dir": str(folder / "run"),
        "model": {"name_or_path": str(tiny_base), "dtype": "fp32"},
        "data": data,
        "train": {"max_steps": 1},
    }
    file.write_text(yaml.safe_dump(raw))
    return file


def test_the_command_shows_the_shares_of_each_source(
    recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    output = tmp_path / "numbers.json"
    ranked = ["evaluate.rank_classification=true"]
    how: dict[str, Any] = {"recipe": recipe, "dtype": "fp32", "say": said.append}
    with_ranks = evaluate_command(str(tiny_base), overrides=ranked, output=output, **how)
    without = evaluate_command(str(tiny_base), **how)
    assert json.loads(output.read_text())["rank_accuracy"] == with_ranks["rank_accuracy"]
    assert "rank_accuracy" not in without
    # the loss is that of the right answers, whatever else is scored
    assert with_ranks["loss"] == pytest.approx(without["loss"], rel=1e-6)
    assert with_ranks["num_samples"] == without["num_samples"] == 3 * len(TEXTS)
    assert with_ranks["rank_examples"] == 2 * len(TEXTS)
    sources = with_ranks["sources"]
    assert sources["two_test"]["rank_chance"] == pytest.approx(1 / 2)
    assert sources["three_test"]["rank_chance"] == pytest.approx(1 / 3)
    assert "rank_accuracy" not in sources["plain_test"]
    mean = (sources["two_test"]["rank_accuracy"] + sources["three_test"]["rank_accuracy"]) / 2
    assert with_ranks["rank_accuracy"] == pytest.approx(mean)
    table = next(text for text in said if text.startswith("rank accuracy by"))
    assert [line.split()[0] for line in table.splitlines()] == [
        "rank",
        "two_test",
        "three_test",
        "all",
    ]


def test_a_split_without_wrong_answers_is_refused(recipe: Path, tiny_base: Path) -> None:
    with pytest.raises(DataError, match="no example of the train data has answers to choose from"):
        evaluate_command(
            str(tiny_base),
            recipe=recipe,
            overrides=["evaluate.rank_classification=true"],
            split="train",
            say=lambda text: None,
        )
