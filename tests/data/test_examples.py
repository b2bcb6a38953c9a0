"""Labelled examples: their renderings lie together, an epoch draws one of each, files do not change
without them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes import recipe, write_jsonl
from toy_tokenizers import toy_tokenizer

from ds_train.config.run import RunConfig
from ds_train.data.audit import format_audit
from ds_train.data.classes import class_texts, example_classes
from ds_train.data.divide import PreparedData
from ds_train.data.examples import EXAMPLE_DTYPES, Examples
from ds_train.data.prepare import open_data, prepare_data
from ds_train.data.row_plan import RowPlan
from ds_train.data.store import META_NAME

FILMS = [
    {"text": f"film number {i}", "label": i % 3, "id": f"n{i}", "year": 1900 + i} for i in range(30)
]
WORDS = {"0": "bad", "1": "so so", "2": "good"}
TEMPLATES = ["{text}\nIt was", "{year}: {text}\nLabel:", "{text} -"]
LOSSES = {"losses": {}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer only."""
    folder = tmp_path_factory.mktemp("tokenizer")
    toy_tokenizer("bytes").save_pretrained(folder)
    return folder


def quiet(text: str) -> None:
    """Says nothing."""


def with_fewshot(config: RunConfig, **fewshot: Any) -> RunConfig:
    return RunConfig.model_validate({**config.model_dump(), "fewshot": fewshot})


def films(model: Path, folder: Path, rows: list[Any] = FILMS, **source: Any) -> RunConfig:
    path = write_jsonl(folder / "films.jsonl", rows)
    one = {"path": path, "format": "classification", "labels": WORDS, "template": TEMPLATES}
    return recipe(model, folder, [one | source], packing=False)


def prepare(config: RunConfig) -> PreparedData:
    return prepare_data(config, say=quiet)


def texts(data: PreparedData) -> list[tuple[str, str]]:
    """(prompt, answer) of every training sample."""
    store, tokenizer = data.train, toy_tokenizer("bytes")
    found = []
    for index in range(store.num_samples):
        ids, mask = store.tokens(index), store.mask(index)
        found.append((tokenizer.decode(ids[~mask]), tokenizer.decode(ids[mask])))
    return found


def table(data: PreparedData) -> Examples:
    assert data.train.examples is not None
    return data.train.examples


def test_templates_of_an_example_lie_together(model: Path, tmp_path: Path) -> None:
    data = prepare(films(model, tmp_path))
    examples = table(data)
    assert data.train.num_samples == 90 and examples.num_examples == 30
    assert examples.template.tolist() == [0, 1, 2] * 30 and examples.gold.all()
    assert examples.choice.tolist() == [i % 3 for i in range(30) for _ in range(3)]
    assert texts(data)[3:6] == [
        ("<s>film number 1\nIt was", " so so</s>"),
        ("<s>1901: film number 1\nLabel:", " so so</s>"),
        ("<s>film number 1 -", " so so</s>"),
    ]
    assert examples.answer_chars[3] == 5 and class_texts(data.train, 0) == ["bad", "so so", "good"]
    assert example_classes(data.train).tolist() == [i % 3 for i in range(30)]


def test_all_answers_where_the_losses_ask_for_them(model: Path, tmp_path: Path) -> None:
    data = prepare(with_fewshot(films(model, tmp_path), **LOSSES))
    examples = table(data)
    assert data.train.num_samples == 30 * 3 * 3 and examples.num_examples == 30
    assert examples.starts[:3].tolist() == [0, 9, 18]
    assert examples.template[:9].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert examples.choice[:9].tolist() == [0, 1, 2] * 3
    assert examples.gold[9:18].tolist() == [False, True, False] * 3
    assert examples.group_gold[3:6].tolist() == [10, 13, 16]
    assert [answer for _, answer in texts(data)[9:12]] == [" bad</s>", " so so</s>", " good</s>"]
    gold = data.train.gold()
    assert gold.num_samples == 90 and gold.examples is not None
    assert gold.examples.num_examples == 30 and gold.examples.group_gold.tolist() == list(range(90))
    answers = [" bad</s>", " so so</s>", " good</s>"]
    assert examples.answer_bytes[9:12].tolist() == [len(one) - len(" </s>") for one in answers]


def test_an_epoch_draws_one_rendering_of_each_example(model: Path, tmp_path: Path) -> None:
    config = with_fewshot(films(model, tmp_path), **LOSSES)
    data = prepare(config)
    examples, rows = table(data), RowPlan.uniform(data.train, config.data, 7, (1.0,))
    drawn = []
    for epoch in range(60):
        samples = rows.block(epoch).samples
        assert sorted(examples.example[samples].tolist()) == list(range(30))
        assert examples.gold[samples].all()
        drawn += examples.template[samples].tolist()
    counts = Counter(drawn)
    assert all(abs(counts[template] - 600) < 80 for template in range(3))  # 4 standard deviations
    again = RowPlan.uniform(open_data(config).train, config.data, 7, (1.0,))
    assert again.block(59).samples.tolist() == rows.block(59).samples.tolist()
    other = RowPlan.uniform(data.train, config.data, 8, (1.0,))
    assert other.block(0).samples.tolist() != rows.block(0).samples.tolist()


def test_what_an_example_draws_depends_on_no_other_example(model: Path, tmp_path: Path) -> None:
    examples = table(prepare(films(model, tmp_path)))
    everyone = np.arange(30)
    drawn = examples.draw(everyone, seed=1, epoch=4)
    some = np.array([21, 3, 8])
    assert examples.draw(some, seed=1, epoch=4).tolist() == drawn[some].tolist()
    twice = examples.draw(np.concatenate([everyone, everyone]), seed=1, epoch=4)
    assert twice[:30].tolist() == drawn.tolist() != twice[30:].tolist()
    assert examples.example[twice[30:]].tolist() == everyone.tolist()


def test_several_passes_in_an_epoch_draw_each_time(model: Path, tmp_path: Path) -> None:
    config = films(model, tmp_path, weight=2.5)
    data = prepare(config)
    rows = RowPlan.uniform(data.train, config.data, 0, (2.5,))
    examples = table(data)
    counts = Counter(examples.example[rows.block(0).samples].tolist())
    assert len(rows.block(0).samples) == 75 and set(counts.values()) == {2, 3}


def test_single_renderings_are_planned_as_before(model: Path, tmp_path: Path) -> None:
    plain = films(model, tmp_path, template=TEMPLATES[0])
    config = with_fewshot(plain, subset={"k": 4})
    data, before = prepare(with_fewshot(plain)), prepare(plain)
    assert before.train.examples is None and table(data).num_examples == 30
    assert data.train.hashes.tolist() == before.train.hashes.tolist()
    plans = [RowPlan.uniform(one.train, config.data, 3, (1.0,)) for one in (data, before)]
    for epoch in range(3):
        assert plans[0].block(epoch).samples.tolist() == plans[1].block(epoch).samples.tolist()


def test_other_stores_have_no_further_files(model: Path, tmp_path: Path) -> None:
    prepare(films(model, tmp_path, template="{text}"))
    (meta,) = (tmp_path / "cache").glob(f"*/{META_NAME}")
    assert not [path.name for path in meta.parent.iterdir() if path.stem in ("templates", "golds")]


def test_a_list_with_one_template_is_that_template(model: Path, tmp_path: Path) -> None:
    listed = prepare(films(model, tmp_path / "", template=["{text}!"]))
    single = prepare(films(model, tmp_path, template="{text}!"))
    assert listed.train.examples is None
    assert listed.train.hashes.tolist() == single.train.hashes.tolist()


def test_held_out_examples_that_are_trained_on_are_counted(model: Path, tmp_path: Path) -> None:
    again = [FILMS[4], {**FILMS[5], "label": 0}, {"text": "another", "label": 1, "year": 1}]
    test = {"path": write_jsonl(tmp_path / "test.jsonl", again), "labels": WORDS}
    config = films(model, tmp_path)
    raw = config.model_dump()
    raw["data"]["validation"] = {"sources": [{**test, "template": "In other words: {text}"}]}
    data = prepare(with_fewshot(RunConfig.model_validate(raw), **LOSSES))
    # the second one says the same with another label, which is one of its wrong answers in train
    assert data.audit["validation_in_train"] == 1
    assert "validation: 1 example is also trained on" in format_audit(data.audit)


SHAPES = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(0, 9)), max_size=8)
"""Of each row: templates, answers (0: it is no labelled example), and where the right one is."""


def table_of(shapes: list[tuple[int, int, int]]) -> Examples:
    rows = [
        (row, template if answers else -1, answer if answers else -1, answer == right % answers)
        if answers
        else (row, -1, -1, True)
        for row, (templates, answers, right) in enumerate(shapes)
        for template in range(templates)
        for answer in range(max(answers, 1))
    ]
    columns = np.array(rows, np.int64).reshape(-1, 4).T
    arrays = {name: np.zeros(columns.shape[1], dtype) for name, dtype in EXAMPLE_DTYPES.items()}
    arrays |= {"templates": columns[1], "choices": columns[2], "golds": columns[3]}
    return Examples.of(arrays, np.zeros(columns.shape[1], np.int16), columns[0])


@given(SHAPES, st.integers(0, 99))
def test_a_table_of_any_shape(shapes: list[tuple[int, int, int]], seed: int) -> None:
    examples = table_of(shapes)
    # the pieces of a row without answers are examples of their own
    expected: list[tuple[int, int]] = []
    for templates, answers, _ in shapes:
        expected += [(templates, answers)] if answers else [(1, 1)] * templates
    assert examples.num_examples == len(expected)
    assert examples.num_templates().tolist() == [templates for templates, _ in expected]
    assert np.diff(examples.starts).tolist() == [t * a for t, a in expected]
    everyone = np.arange(len(expected))
    drawn = examples.draw(everyone, seed, epoch=1)
    assert examples.example[drawn].tolist() == everyone.tolist() and examples.gold[drawn].all()
    kept = np.flatnonzero(examples.gold)
    gold = examples.select(kept)
    assert gold is not None and gold.num_examples == len(expected)
    assert gold.num_templates().tolist() == examples.num_templates().tolist()
    assert (gold.num_choices() == 1).all()
    assert kept[gold.draw(everyone, seed, epoch=1)].tolist() == drawn.tolist()


@given(SHAPES, st.data())
def test_some_examples_of_a_table(shapes: list[tuple[int, int, int]], data: st.DataObject) -> None:
    examples = table_of(shapes)
    chosen = data.draw(st.sets(st.integers(0, max(0, examples.num_examples - 1))))
    kept = np.flatnonzero(np.isin(examples.example, list(chosen)))
    some = examples.select(kept)
    assert some is not None and some.num_examples == len(chosen & set(range(examples.num_examples)))
    for number, original in enumerate(sorted(chosen & set(range(examples.num_examples)))):
        here = kept[some.starts[number] : some.starts[number + 1]]
        assert here.tolist() == list(range(*examples.starts[original : original + 2]))
    if len(kept) > 1:
        assert examples.select(kept[::-1]) is None
