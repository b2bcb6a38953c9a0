"""Each metric that needs no model against a value worked out by hand or written down otherwise."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored_recipe import ROWS, prepared, scored_recipe
from small_store import make_store

from ds_train.curriculum.metrics import rows, texts, tokens
from ds_train.curriculum.metrics.combine import cdf_ranks, mean_rank
from ds_train.curriculum.metrics.rows import row_difficulty
from ds_train.curriculum.metrics.spec import MetricSpec
from ds_train.curriculum.metrics.texts import compression, count_syllables, readability
from ds_train.curriculum.metrics.tokens import token_difficulty
from ds_train.data.store import TokenStore
from ds_train.errors import ConfigError, DataError
from ds_train.model.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def plain_rarity(store: TokenStore) -> list[float]:
    """Written down token by token."""
    counts = Counter(int(one) for i in range(store.num_samples) for one in store.tokens(i))
    total = sum(counts.values())
    return [
        math.fsum(-math.log(counts[int(one)] / total) for one in store.tokens(i))
        for i in range(store.num_samples)
    ]


def random_store(seed: int, num_samples: int = 200) -> TokenStore:
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 40, num_samples)
    return make_store([random.integers(0, 50, length).tolist() for length in lengths])


def test_lengths() -> None:
    store = make_store([[5, 6, 7], [8, 9]], [[0, 1, 1], [0, 1]])
    assert token_difficulty("length", store, 1).tolist() == [3, 2]
    assert token_difficulty("target_length", store, 1).tolist() == [2, 1]


def test_rarity_by_hand() -> None:
    store = make_store([[5, 5], [5, 9], [7, 7]])  # of 6 tokens: 5 three times, 7 twice, 9 once
    expected = [2 * math.log(2), math.log(2) + math.log(6), 2 * math.log(3)]
    assert token_difficulty("rarity", store, 1) == pytest.approx(expected, rel=1e-15)
    halved = [value / 2 for value in expected]
    assert token_difficulty("rarity_mean", store, 1) == pytest.approx(halved, rel=1e-15)


@pytest.mark.parametrize("chunk", [1, 7, 100, 10**6])
@pytest.mark.parametrize("kept", ["all", "odd", "ends", "middle"])
def test_rarity_of_a_part_of_a_store(
    chunk: int, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the chosen samples count, wherever they lie, and chunks change not one bit."""
    whole = random_store(0)
    chosen = {"all": np.arange(200), "odd": np.arange(1, 200, 2), "ends": np.array([0, 199])}
    store = whole.select(chosen.get(kept, np.arange(60, 70)))
    monkeypatch.setattr(tokens.chunks, "__defaults__", (chunk,))
    values = token_difficulty("rarity", store, 1)
    assert values == pytest.approx(plain_rarity(store), rel=1e-13)
    monkeypatch.setattr(tokens.chunks, "__defaults__", (50,))
    assert token_difficulty("rarity", store, 1).tolist() == values.tolist()


def test_rarity_wants_the_order_of_the_store() -> None:
    with pytest.raises(ValueError, match="order of the store"):
        token_difficulty("rarity", random_store(0).select(np.array([3, 2])), 1)


def test_compression() -> None:
    text = "How now, brown cow? " * 20
    assert compression(text) == len(zlib.compress(text.encode())) / 400 < 0.2
    assert compression("Zürich") > 1  # 7 bytes, and zlib's header is longer
    assert compression("ab") == len(zlib.compress(b"ab")) / 2
    assert math.isnan(compression(""))


@pytest.mark.parametrize(
    ("text", "words", "sentences", "syllables"),
    [
        ("The cat sat on the mat.", 6, 1, 6),  # Reading Ease 116.145, as textbooks have it
        ("Stop! Why? I don't know...", 5, 3, 5),
        ('He paid 3.50 dollars. "Really?" she wanted to know.', 9, 3, 12),
        ("no end", 2, 1, 2),
        ("17 + 4 = 21", 3, 1, 3),
    ],
)
def test_readability(text: str, words: int, sentences: int, syllables: int) -> None:
    reading_ease = 206.835 - 1.015 * words / sentences - 84.6 * syllables / words
    assert readability(text) == pytest.approx(206.835 - reading_ease)


def test_no_word_has_no_readability() -> None:
    assert math.isnan(readability("!!! ..."))


def test_syllables() -> None:
    words = "table makes made wanted boxes called handled be rhythm beautiful people idea 42 große"
    counts = [2, 1, 1, 2, 2, 1, 2, 1, 1, 3, 2, 2, 1, 1]
    assert [count_syllables(word) for word in words.split()] == counts


def test_harder_texts_are_higher() -> None:
    easy = "The dog ran. The cat sat. It was fun."
    hard = "Notwithstanding considerable methodological heterogeneity, investigators collaborated."
    assert readability(hard) > readability(easy)


@pytest.mark.parametrize("kind", ["rarity", "compression", "readability"])
def test_processes_change_nothing(
    kind: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = [
        {"prompt": "The cat sat. " * (i % 4), "completion": " A beautiful day" * (i % 3 + 1)}
        for i in range(60)
    ]
    config = scored_recipe(model, tmp_path, kind, mine, max_length=128)
    store = prepared(config).train
    monkeypatch.setattr(tokens, "FEW_TOKENS", 1)
    monkeypatch.setattr(texts, "_FEW_TOKENS", 1)
    monkeypatch.setattr(texts, "_CHUNK_TOKENS", 100)
    monkeypatch.setattr(tokens.chunks, "__defaults__", (100,))

    def compute(num_workers: int) -> list[float]:
        if kind == "rarity":
            return token_difficulty(kind, store, num_workers).tolist()
        return texts.text_difficulty(kind, store, config.model, num_workers).tolist()

    alone = compute(1)
    assert compute(2) == alone
    assert len(alone) == 60 and len(set(alone)) > 5


def test_texts_are_what_the_tokens_decode_to(model: Path, tmp_path: Path) -> None:
    config = scored_recipe(model, tmp_path, "compression")
    values = texts.text_difficulty("compression", prepared(config).train, config.model, 1)
    plain = [row["prompt"] + row["completion"] for row in ROWS]
    assert values.tolist() == [compression(text) for text in plain]


# Values of the source rows


def read(config: Any, spec: MetricSpec, num_workers: int = 1) -> list[float]:
    return row_difficulty(spec, config.data, prepared(config).train, num_workers).tolist()


def test_a_column(model: Path, tmp_path: Path) -> None:
    config = scored_recipe(model, tmp_path, "length")
    assert read(config, MetricSpec("column", "steps")) == [row["steps"] for row in ROWS]


def test_a_column_in_nested_data_and_as_text(model: Path, tmp_path: Path) -> None:
    mine = [{**ROWS[0], "meta": {"level": "2.5"}}, {**ROWS[1], "meta": {"level": -1}}]
    config = scored_recipe(model, tmp_path, "length", mine)
    assert read(config, MetricSpec("column", "meta.level")) == [2.5, -1]


def test_levels_of_a_column(model: Path, tmp_path: Path) -> None:
    mine = [{**ROWS[i], "level": level} for i, level in enumerate(["mid", "low", "high", "low"])]
    config = scored_recipe(model, tmp_path, "length", mine)
    spec = MetricSpec("column", "level", ("low", "mid", "high"))
    assert read(config, spec) == [1, 0, 2, 0]
    with pytest.raises(DataError, match='line 3 has "high", which is none of its levels: low, mid'):
        read(config, MetricSpec("column", "level", ("low", "mid")))


def test_pieces_and_dropped_rows(model: Path, tmp_path: Path) -> None:
    """A long row is several samples of one difficulty; a row that left none needs no difficulty."""
    mine: list[dict[str, Any]] = [
        {"text": "a" * 100, "steps": 1},  # with <s> and </s> 102 tokens: two pieces of up to 64
        {"text": "", "steps": "unknown"},
        {"text": "b", "steps": 2},
        {"text": "c" * 200, "steps": 3},
    ]
    config = scored_recipe(model, tmp_path, "length", mine)
    assert read(config, MetricSpec("column", "steps")) == [1, 1, 2, 3, 3, 3, 3]


def test_several_sources_and_validation(model: Path, tmp_path: Path) -> None:
    config = scored_recipe(model, tmp_path, "length", validation={"fraction": 0.3})
    path = Path(str(config.data.train[0].path))
    other = tmp_path / "other.jsonl"
    other.write_text(path.read_text().replace('"steps": ', '"steps": 10'))
    sources = [*config.data.train, config.data.train[0].model_copy(update={"path": str(other)})]
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": sources})})
    store = prepared(config).train
    assert 60 < store.num_samples < 110
    tens = [int(f"10{row['steps']}") for row in ROWS]
    expected = [
        (tens if source else [row["steps"] for row in ROWS])[ordinal]
        for source, ordinal in zip(store.sources.tolist(), store.ordinals.tolist(), strict=True)
    ]
    assert read(config, MetricSpec("column", "steps")) == expected


def test_a_function(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rows, "_FEW_ROWS", 1)
    monkeypatch.setattr(rows, "_CHUNK_ROWS", 7)
    Path("own_metric_a.py").write_text("def f(row):\n    return len(row['completion']) / 2\n")
    config = scored_recipe(model, tmp_path, "length")
    spec = MetricSpec("python", "own_metric_a:f")
    expected = [len(row["completion"]) / 2 for row in ROWS]
    assert read(config, spec) == read(config, spec, num_workers=2) == expected


def test_a_fault_in_a_worker_is_told_with_its_row(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rows, "_FEW_ROWS", 1)
    Path("own_metric_b.py").write_text("def f(row):\n    return 1 / (row['steps'] - 4)\n")
    config = scored_recipe(model, tmp_path, "length")
    first = next(i for i, row in enumerate(ROWS) if row["steps"] == 4)
    with pytest.raises(DataError, match=rf"line {first + 1}: the function raised ZeroDivisionErr"):
        read(config, MetricSpec("python", "own_metric_b:f"), num_workers=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_like_it", "raised ModuleNotFoundError: No module named"),
        ("def g(row): return 1", 'has no function "gg". Did you mean g?'),
    ],
)
def test_functions_that_can_not_be_had(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"own_metric_{len(text)}"
    Path(f"{name}.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        rows.import_function(MetricSpec("python", f"{name}:gg"))
    assert message in str(caught.value)


# Several metrics in one


def test_ranks_by_hand() -> None:
    assert cdf_ranks(np.array([3.0, 1.0, 3.0, 9.0])).tolist() == [0.75, 0.25, 0.75, 1.0]
    assert cdf_ranks(np.array([7.0])).tolist() == [1.0]
    many = np.random.default_rng(0).integers(0, 50, 300).astype(np.float32)
    assert cdf_ranks(many).tolist() == [float((many <= one).mean()) for one in many]
    mean = mean_rank([np.array([3.0, 1.0, 3.0, 9.0]), np.array([0.0, 1.0, 2.0, 3.0])])
    assert mean.tolist() == [0.5, 0.375, 0.75, 1.0]
