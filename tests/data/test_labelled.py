"""Rows of labelled sources: which answers they offer, and which of them is right."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from recipes import recipe, write_jsonl
from toy_tokenizers import toy_tokenizer

from ds_train.config.data import SourceConfig
from ds_train.data.audit import format_audit
from ds_train.data.classes import class_texts
from ds_train.data.columns import RowFormat
from ds_train.data.divide import PreparedData
from ds_train.data.formats import choose_format, convert
from ds_train.data.labelled import Labelled, content_hash, read_labelled
from ds_train.data.prepare import prepare_data
from ds_train.data.read import Row
from ds_train.data.sources import Source
from ds_train.data.types import Completion
from ds_train.errors import DataError

CHOICES = ["4", "five", "6"]


def source_of(**settings: Any) -> Source:
    config = SourceConfig.model_validate({"path": "a.jsonl", **settings})
    return Source("data.train[0]", "a", config, "files", (), validation=False)


def read(values: dict[str, Any], **settings: Any) -> tuple[RowFormat, Labelled]:
    source, row = source_of(**settings), Row(values, 0, "line 1", 1)
    form = choose_format(source, row, has_template=False)
    return form, read_labelled(row, source, form)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [(0, 0), (2, 2), ("five", 1), ("B", 1), ("c", 2), (" 1 ", 1), ("2", 2), ("6", 2), ("4", 0)],
)
def test_readings_of_an_answer(answer: Any, gold: int) -> None:
    form, example = read({"prompt": "2 + 3?", "choices": CHOICES, "answer": answer})
    assert form.name == "multiple_choice" and "found from the columns" in form.how
    assert example == Labelled(("2 + 3?\nAnswer:",), ("4", "five", "6"), gold)
    assert example.completion(0, 1) == Completion("2 + 3?\nAnswer:", " five")


def test_a_letter_that_is_an_answer_is_that_answer() -> None:
    _, example = read({"prompt": "vowel?", "choices": ["B", "C", "A"], "answer": "A"})
    assert example.gold == 2


def test_answers_in_several_columns_and_below_others() -> None:
    row = {"goal": "open it", "sol1": "pull", "sol2": "push", "label": 1}
    columns = {"prompt": "goal", "choices": ["sol1", "sol2"], "answer": "label"}
    _, example = read(row, format="multiple_choice", columns=columns)
    assert example == Labelled(("open it\nAnswer:",), ("pull", "push"), 1)
    row = {
        "question": "sky?",
        "choices": {"text": ["blue", "red"], "label": ["A", "B"]},
        "key": "B",
    }
    columns = {"prompt": "question", "choices": "choices.text", "answer": "key"}
    _, example = read(row, columns=columns)
    assert example.choices == ("blue", "red") and example.gold == 1


def test_numbers_as_answers() -> None:
    _, example = read({"prompt": "2 + 3?", "choices": [4, 5, 6.5], "answer": "5"})
    assert example.choices == ("4", "5", "6.5") and example.gold == 1


def test_templates_with_other_columns() -> None:
    row = {"prompt": "2 + 3?", "choices": CHOICES, "answer": 1, "topic": "sums"}
    _, example = read(row, template=["[{topic}] {prompt} =", "{prompt}"])
    assert example.prompts == ("[sums] 2 + 3? =", "2 + 3?")


def test_a_plain_conversion_takes_the_right_answer() -> None:
    row = Row({"prompt": "2 + 3?", "choices": CHOICES, "answer": "B"}, 0, "line 1", 1)
    source = source_of()
    form = choose_format(source, row, has_template=False)
    assert convert(row, source, form) == Completion("2 + 3?\nAnswer:", " five")


def test_what_a_row_says_is_what_its_format_reads() -> None:
    values = {"text": "a film", "label": "bad", "id": 1}
    form, _ = read(values)

    def content(**changes: Any) -> int:
        return content_hash(Row(values | changes, 7, "line 8", 1), form)

    assert content() == content(id=2) and content() == content(more="x")
    assert content(label=1) == content(label="1") != content(label="2")
    assert len({content(), content(label="good"), content(text="A film")}) == 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer only."""
    folder = tmp_path_factory.mktemp("tokenizer")
    toy_tokenizer("bytes").save_pretrained(folder)
    return folder


def prepared(
    model: Path, folder: Path, rows: list[Any], said: list[str] | None = None, **settings: Any
) -> PreparedData:
    """Data with every answer; what is said goes to `said`, `data` to the data section."""
    data, said = settings.pop("data", {}), [] if said is None else said
    config = recipe(model, folder, [{"path": write_jsonl(folder / "a.jsonl", rows), **settings}])
    raw = config.model_dump()
    raw["data"] |= data
    raw["fewshot"] = {"losses": {}}
    return prepare_data(type(config).model_validate(raw), say=said.append)


def test_labels_found_in_the_data_are_said_once_and_in_order(model: Path, tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": i % 12} for i in range(24)]
    said: list[str] = []
    data = prepared(model, tmp_path, rows, said)
    numbers = [str(i) for i in range(12)]
    assert class_texts(data.train, 0) == numbers
    assert [one for one in said if "labels" in one] == [
        f"data.train[0] (a.jsonl): 12 labels found in the data: {', '.join(numbers)}"
    ]
    assert data.train.num_samples == 24 * 12
    assert "1 template, each with every answer; 12 classes (0, 1, 2, 3, 4, 5, 6, 7, ...)" in (
        format_audit(data.audit)
    )
    assert "train: 24 examples as 288 samples" in format_audit(data.audit)


def test_validation_has_the_classes_of_training(model: Path, tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "abc"[i % 3]} for i in range(9)]
    path = write_jsonl(tmp_path / "test.jsonl", [{"text": "x", "label": "a"}])
    held_out = {"validation": {"sources": [{"path": path}]}}
    data = prepared(model, tmp_path, rows, data=held_out)
    assert class_texts(data.train, 1) == ["a", "b", "c"]
    assert data.validation is not None and data.validation.num_samples == 1  # not ranked


def test_validation_without_the_words_of_training_is_refused(model: Path, tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(8)]
    test = {"path": write_jsonl(tmp_path / "test.jsonl", rows), "name": "test"}
    words = {"0": "bad", "1": "good"}
    with pytest.raises(DataError) as caught:
        prepared(model, tmp_path, rows, labels=words, data={"validation": {"sources": [test]}})
    assert str(caught.value) == (
        "data.validation.sources[0] (test): has the labels 0, 1, for which data.train[0].labels "
        "gives other words; the model would be asked for what it has never seen. Give "
        "data.validation.sources[0] the same labels."
    )
    same = {"validation": {"sources": [{**test, "labels": words}]}}
    assert prepared(model, tmp_path, rows, labels=words, data=same).validation is not None
    itself = {"bad": "bad", "good": "good"}
    rows = [{"text": f"t{i}", "label": ("bad", "good")[i % 2]} for i in range(8)]
    test = {"path": write_jsonl(tmp_path / "words.jsonl", rows)}
    plain = {"validation": {"sources": [test]}}
    assert prepared(model, tmp_path, rows, labels=itself, data=plain).validation is not None


def test_several_labels_may_stand_for_one_word(model: Path, tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": i % 3} for i in range(9)]
    data = prepared(model, tmp_path, rows, labels={"0": "bad", "1": "bad", "2": "good"})
    assert class_texts(data.train, 0) == ["bad", "good"] and data.train.num_samples == 18


def test_one_label_in_all_rows_leaves_nothing_to_compare(model: Path, tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "a"} for i in range(9)]
    with pytest.raises(DataError, match=r"a\.jsonl\): has one class only \(a\), so there is no"):
        prepared(model, tmp_path, rows)


def test_a_column_of_texts_is_no_label(model: Path, tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": f"l{i}"} for i in range(1100)]
    with pytest.raises(DataError, match=r'1,100 different labels .* Is "label" the column'):
        prepared(model, tmp_path, rows)


@pytest.mark.parametrize("over_length", [None, "drop"])
def test_an_example_goes_as_a_whole(model: Path, tmp_path: Path, over_length: str | None) -> None:
    rows = [
        {"prompt": "a", "choices": ["x", "y"], "answer": 0},
        {"prompt": "b" * 60, "choices": ["x", "y" * (120 if over_length else 40)], "answer": 0},
        {"prompt": "c" * 150, "choices": ["x", "y"], "answer": 1},
        {"prompt": "d", "choices": ["x", "y"], "answer": 1},
    ]
    settings = {"max_length": 100, "over_length": over_length}
    data = prepared(model, tmp_path, rows, data=settings)
    assert data.train.ordinals.tolist() == [0, 0, 3, 3]
    counts = Counter(data.audit["sources"][0])
    assert counts["dropped_too_long"] == 2 and counts["rows"] == 4


def test_rows_are_the_same_with_several_processes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"prompt": f"{i}?", "choices": ["yes", "no", f"{i}"], "answer": i % 3} for i in range(700)
    ]
    template = ["{prompt} so", "{prompt}"]
    one = prepared(model, tmp_path / "", rows, template=template, data={"num_workers": 1})
    folder = tmp_path / "two"
    folder.mkdir()
    monkeypatch.setattr("ds_train.data.tokenise._FEW_ROWS", 1)
    two = prepared(model, folder, rows, template=template, data={"num_workers": 2})
    assert one.train.examples is not None and two.train.examples is not None
    assert one.train.num_samples == 700 * 6 and class_texts(one.train, 0) is None
    assert one.train.hashes.tolist() == two.train.hashes.tolist()
    assert one.train.examples.starts.tolist() == two.train.examples.starts.tolist()
    digests = [
        json.loads(next(place.glob("cache/*/meta.json")).read_text())["files"]
        for place in (tmp_path, folder)
    ]
    assert digests[0] == digests[1]
