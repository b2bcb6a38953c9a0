"""`ds-train data` on labelled examples: each template, the right answer, then the wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recipes import recipe, write_jsonl
from toy_tokenizers import toy_tokenizer

from ds_train.config.run import RunConfig
from ds_train.data.show import show_data

ROWS = [{"text": f"film {i}", "label": f"l{i % 12}"} for i in range(24)]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    toy_tokenizer("bytes").save_pretrained(tmp_path / "model")
    source = {
        "path": write_jsonl(tmp_path / "a.jsonl", ROWS),
        "format": "classification",
        "template": ["{text} is", "{text}:"],
    }
    made = recipe(tmp_path / "model", tmp_path, [source], packing=False)
    return RunConfig.model_validate({**made.model_dump(), "fewshot": {"losses": {}}})


def shown(config: RunConfig, **options: Any) -> list[str]:
    said: list[str] = []
    show_data(config, say=said.append, **options)
    return said


def test_examples_in_their_templates_with_the_wrong_answers(config: RunConfig) -> None:
    said = shown(config, rows=2)
    start = next(place for place, line in enumerate(said) if line.startswith("sample"))
    heads, texts, wrong = said[start::3], said[start + 1 :: 3], said[start + 2 :: 3]
    assert [head.split("; ", 1)[1] for head in heads] == [
        "template 1 of 2; the right one of 12 answers",
        "template 2 of 2; the right one of 12 answers",
    ] * 2
    assert texts == [
        "  <s>film 0 is« l0</s>»",
        "  <s>film 0:« l0</s>»",
        "  <s>film 1 is« l1</s>»",
        "  <s>film 1:« l1</s>»",
    ]
    others = [f"l{i}" for i in (1, 10, 11, 2, 3, 4, 5, 6)]  # in the order of their letters
    listed = " ".join(f"« {one}</s>»" for one in others)
    assert wrong[0] == f"  wrong: {listed} and 3 more"


def test_json_names_the_rendering(config: RunConfig) -> None:
    facts = json.loads(shown(config, rows=1, as_json=True)[0])
    first, second = facts["samples"]
    assert first["template"] == 1 and second["template"] == 2 and first["of_templates"] == 2
    assert first["right"] is True and first["of_answers"] == 12
    assert len(first["wrong_answers"]) == 8 and first["more_wrong_answers"] == 3
    assert facts["audit"]["train"]["examples"] == 24


def test_a_step_says_which_answer_is_right(config: RunConfig) -> None:
    heads = [line.strip() for line in shown(config, step=1) if "sample" in line and "row" in line]
    right = [head for head in heads if head.endswith("the right one of 12 answers")]
    wrong = [head for head in heads if head.endswith("a wrong one of 12 answers")]
    assert right and len(wrong) == 11 * len(right)
