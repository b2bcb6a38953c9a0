"""The task of `--digits`: right sums, even lengths, one token a character, the same bytes."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ds_train.compare.digits import (
    LENGTHS,
    digits_recipe,
    make_pool,
    make_test,
    make_tokenizer,
    write_digits,
)
from ds_train.config.files import check_files
from ds_train.config.load import load_recipe
from ds_train.errors import ConfigError


def test_sums_are_right_and_lengths_even() -> None:
    items = list(make_pool(9000, 0))
    for item in items:
        digits = [int(digit) for digit in item["prompt"].removesuffix("=").split("+")]
        assert len(digits) == item["digits"]
        assert item["completion"] == str(sum(digits) % 5)
    counts = Counter(item["digits"] for item in items)
    assert sorted(counts) == list(LENGTHS)
    assert all(850 < count < 1150 for count in counts.values())
    assert all(0.17 < c / 9000 < 0.23 for c in Counter(i["completion"] for i in items).values())


def test_long_test_items_are_fresh() -> None:
    pool = {item["prompt"] for item in make_pool(40_000, 0)}
    test = [item["prompt"] for item in make_test(9, 200, 0)]
    assert len(set(test)) == 200
    assert pool.isdisjoint(test)


def test_a_token_for_each_character(tmp_path: Path) -> None:
    item = next(item for item in make_pool(100, 0) if item["digits"] == 3)
    tokens = make_tokenizer().encode(item["prompt"] + item["completion"]).tokens
    assert tokens == list(item["prompt"] + item["completion"])
    files = write_digits(tmp_path, 0)
    tokenizer = AutoTokenizer.from_pretrained(files.architecture)
    text = "3+0+4=2"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_same_seed_gives_the_same_items() -> None:
    assert list(islice(make_pool(10, 3), 10)) == list(make_pool(10, 3))
    assert list(make_pool(10, 3)) != list(make_pool(10, 4))


def test_the_bundled_recipe_reads_the_files(tmp_path: Path) -> None:
    recipe, overrides = digits_recipe(tmp_path, [None, "compare.seeds=[7]"])
    config = load_recipe(recipe, overrides)
    assert check_files(config) == []
    assert config.output_dir == str(tmp_path)
    assert config.compare is not None
    assert config.compare.seeds == [7]
    assert len(config.data.validation.sources) == len(LENGTHS)
    rows = Path(config.data.train[0].path).read_text().splitlines()  # type: ignore[arg-type]
    assert len(rows) == 40_000


def test_a_recipe_beside_digits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        digits_recipe(tmp_path, ["my.yaml"])
    assert str(refusal.value) == '--digits brings its own recipe; remove "my.yaml".'
    assert not (tmp_path / "files").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="can't be written to"):
        digits_recipe(tmp_path / "file", [])
