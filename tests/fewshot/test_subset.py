"""k-shot subsets: nested, the same whatever the order of the file, with a dev set of their own."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from letters import save_letters

from ds_train.config.run import RunConfig
from ds_train.data.audit import format_audit
from ds_train.data.classes import example_classes
from ds_train.data.divide import PreparedData
from ds_train.data.prepare import open_data, prepare_data
from ds_train.data.store import TokenStore
from ds_train.errors import DataError

WORDS = ("bad", "so so", "good")
FILMS = [{"text": f"film number {i}", "label": WORDS[i * i % 3], "year": i} for i in range(120)]
"""40 bad films, 80 so so ones."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer only."""
    return save_letters(tmp_path_factory.mktemp("tokenizer"))


def write(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Recipe:
    """Makes recipes over files in one folder."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder

    def __call__(
        self,
        rows: list[Any] = FILMS,
        source: dict[str, Any] | None = None,
        fewshot: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        **subset: Any,
    ) -> RunConfig:
        one = {"path": write(self.folder / "films.jsonl", rows), "format": "classification"}
        return RunConfig.model_validate(
            {
                "output_dir": str(self.folder / "run"),
                "model": {"name_or_path": str(self.model)},
                "data": {
                    "train": [one | (source or {})],
                    "max_length": 64,
                    "cache_dir": str(self.folder / "cache"),
                    **(data or {}),
                },
                "train": {"max_steps": 1},
                "fewshot": {"subset": {"k": 4, "seed": 0, **subset}, **(fewshot or {})},
            }
        )


@pytest.fixture
def recipe(model: Path, tmp_path: Path) -> Recipe:
    return Recipe(model, tmp_path)


def prepare(config: RunConfig) -> PreparedData:
    return prepare_data(config, say=lambda text: None)


def contents(store: TokenStore | None) -> set[int]:
    assert store is not None and store.examples is not None
    return set(store.examples.row_hash.tolist())


def test_k_of_each_class_and_as_many_for_dev(recipe: Recipe) -> None:
    data = prepare(recipe(k=4))
    assert data.dev is not None
    assert np.bincount(example_classes(data.train)).tolist() == [4, 4]
    assert np.bincount(example_classes(data.dev)).tolist() == [4, 4]
    assert not contents(data.train) & contents(data.dev)
    assert data.evaluated is not None and contents(data.evaluated) == contents(data.dev)
    assert data.validation is None


def test_the_smaller_set_lies_within_the_larger(recipe: Recipe) -> None:
    sets = [contents(prepare(recipe(k=k, seed=5)).train) for k in (1, 2, 3, 8, 20)]
    assert [len(one) for one in sets] == [2, 4, 6, 16, 40]
    assert all(small < large for small, large in pairwise(sets))
    with_dev = contents(prepare(recipe(k=8, seed=5, dev=True)).train)
    assert with_dev == contents(prepare(recipe(k=8, seed=5, dev=False)).train) == sets[3]


def test_seeds_draw_other_examples_and_train_seed_is_the_default(recipe: Recipe) -> None:
    sets = [contents(prepare(recipe(k=4, seed=seed)).train) for seed in range(6)]
    assert len({frozenset(one) for one in sets}) == 6
    config = recipe(k=4, seed=None)
    other = config.model_copy(update={"train": config.train.model_copy(update={"seed": 3})})
    assert contents(prepare(other).train) == sets[3]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_order_of_the_file_and_doubled_rows_play_no_part(recipe: Recipe, seed: int) -> None:
    first = prepare(recipe(k=6))
    doubled = FILMS + [FILMS[i] for i in (3, 3, 50, 51)]
    random.Random(seed).shuffle(doubled)
    again = prepare(recipe(doubled, k=6))
    assert contents(again.train) == contents(first.train)
    assert contents(again.dev) == contents(first.dev)
    assert first.subset is not None and again.subset is not None
    assert again.subset.facts["hash"] == first.subset.facts["hash"]
    assert again.train.num_samples == 12  # a row that stands twice counts once
    assert again.fingerprint != first.fingerprint


def test_which_of_two_rows_that_differ_elsewhere_does_not_depend_on_the_order(
    recipe: Recipe,
) -> None:
    twins = [{**row, "year": row["year"] + 1000} for row in FILMS]
    source = {"template": "{year} {text}"}
    tokens = []
    for rows in (FILMS + twins, twins + FILMS):
        store = prepare(recipe(rows, source, k=10, dev=False)).train
        tokens.append(sorted(store.hashes.tolist()))
        assert store.num_samples == 20
    assert tokens[0] == tokens[1]


def test_templates_candidates_and_words_of_labels_change_no_choice(recipe: Recipe) -> None:
    plain = prepare(recipe(k=4))
    several = {"template": ["{text} a", "{text} b"], "labels": {"bad": "no", "so so": "yes"}}
    data = prepare(recipe(source=several, fewshot={"losses": {}}, k=4))
    assert data.train.num_samples == 8 * 2 * 2
    assert contents(data.train) == contents(plain.train)
    assert contents(data.dev) == contents(plain.dev)
    assert plain.subset is not None and data.subset is not None
    assert data.subset.facts["hash"] == plain.subset.facts["hash"]


def test_every_rank_chooses_the_same(recipe: Recipe) -> None:
    config = recipe(k=5)
    first, again = prepare(config), open_data(config)
    assert first.train.ordinals.tolist() == again.train.ordinals.tolist()
    assert first.fingerprint == again.fingerprint
    other = open_data(recipe(k=6))
    assert other.fingerprint != first.fingerprint


def test_the_lists_name_ids_and_rows(recipe: Recipe) -> None:
    data = prepare(recipe(k=4))
    assert data.subset is not None
    facts = json.loads(json.dumps(data.subset.facts))
    assert {key: facts[key] for key in ("k", "seed", "per", "dev")} == {
        "k": 4, "seed": 0, "per": "class", "dev": True,
    }  # fmt: skip
    assert [(one["source"], one["class"]) for one in facts["classes"]] == [
        ("films.jsonl", "bad"),
        ("films.jsonl", "so so"),
    ]
    rows = [one["row"] for of in facts["classes"] for one in of["train"]]
    assert sorted(rows) == sorted((data.train.ordinals + 1).tolist())
    assert all(FILMS[row - 1]["label"] == "bad" for one in facts["classes"][:1] for row in
               [entry["row"] for entry in one["train"] + one["dev"]])  # fmt: skip
    larger = prepare(recipe(k=9)).subset
    assert larger is not None
    for small, large in zip(facts["classes"], larger.facts["classes"], strict=True):
        assert large["train"][:4] == small["train"]
    text = format_audit(data.audit)
    assert f"fewshot.subset {facts['hash'][:12]}: 4 of each of 2 classes, seed 0: 8 to" in text
    assert "train, 8 for dev" in text


def test_k_of_a_source_whatever_its_format(recipe: Recipe) -> None:
    pairs = [{"prompt": f"{i}?", "completion": f" {i * i}"} for i in range(50)]
    data = prepare(recipe(pairs, {"format": "prompt_completion"}, k=7, per="source"))
    assert data.train.num_samples == 7 and len(contents(data.train) | contents(data.dev)) == 14


def test_pieces_of_a_row_go_together(recipe: Recipe) -> None:
    texts = [{"text": f"{i} " * 60} for i in range(30)]
    data = prepare(recipe(texts, {"format": "text"}, k=5, per="source"))
    rows = data.train.ordinals.tolist()
    assert len(set(rows)) == 5 and len(rows) > 10
    whole = prepare(recipe(texts, {"format": "text"}, k=15, per="source"))
    for row in set(rows):
        assert rows.count(row) == whole.train.ordinals.tolist().count(row)


def test_dev_of_one_source_is_not_trained_on_in_another(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(k=15, seed=1)
    path = write(tmp_path / "copy.jsonl", FILMS)
    both = [*config.data.train, config.data.train[0].model_copy(update={"path": path})]
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": both})})
    data = prepare(config)
    assert not contents(data.train) & contents(data.dev)
    # more of the copy's would be wanted than there are that the other source does not train on
    assert len(contents(data.train)) == 30


def test_validation_by_fraction_stays_the_test_set(recipe: Recipe) -> None:
    held = {"validation": {"fraction": 0.3}}
    sets = [prepare(recipe(data=held, k=k)) for k in (2, 6)]
    assert contents(sets[0].validation) == contents(sets[1].validation)
    for data in sets:
        assert not contents(data.validation) & (contents(data.train) | contents(data.dev))


def test_multiple_choice_with_shared_answers_has_classes(recipe: Recipe) -> None:
    rows = [
        {"prompt": f"is {i} even?", "choices": ["yes", "no"] if i % 3 else ["no", "yes"],
         "answer": "no" if i % 2 else "yes"}
        for i in range(40)
    ]  # fmt: skip
    data = prepare(recipe(rows, {"format": "multiple_choice"}, k=5))
    assert data.subset is not None
    assert [one["class"] for one in data.subset.facts["classes"]] == ["no", "yes"]
    assert sorted(int(i) % 2 for i in data.train.ordinals) == [0] * 5 + [1] * 5


MESSAGES: list[tuple[str, dict[str, Any], str]] = [
    (
        "k larger than a class",
        {"k": 50, "dev": False},
        'fewshot.subset.k = 50: class "bad" of source films.jsonl has 40 different examples to '
        "train on; take k of at most 40.",
    ),
    (
        "no room for dev",
        {"k": 30},
        'fewshot.subset.dev = true: class "bad" of source films.jsonl has 40 different examples to '
        "train on, and k = 30 for training and as many for dev want 60; take k of at most 20, or "
        "set dev: false.",
    ),
    (
        "one class only",
        {"rows": [row for row in FILMS if row["label"] == "bad"]},
        'fewshot.subset: source films.jsonl has one class only, "bad", so there is nothing to tell '
        "apart; add rows of another class, or set per: source.",
    ),
    (
        "no classes",
        {
            "rows": [{"prompt": f"{i}", "completion": "c"} for i in range(20)],
            "source": {"format": "prompt_completion"},
        },
        "fewshot.subset.per = class: source films.jsonl has no classes (format prompt_completion, "
        "each row with an answer of its own); set per: source.",
    ),
    (
        "a label that no row has",
        {"source": {"labels": {"bad": "bad", "so so": "so so", "good": "good"}}},
        'fewshot.subset.k = 4: class "good" of source films.jsonl has 0 different examples to '
        "train on; add examples of it.",
    ),
]


@pytest.mark.parametrize(
    ("settings", "message"), [one[1:] for one in MESSAGES], ids=[one[0] for one in MESSAGES]
)
def test_messages(recipe: Recipe, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare(recipe(**settings))
    assert str(caught.value) == message
