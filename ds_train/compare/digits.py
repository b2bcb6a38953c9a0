"""The bundled task of `ds-train compare --digits`: sums modulo 5, from 1 to 9 digits, "3+0+4=2".

It is learned in hours by nobody and in a minute by a model of 100,000 parameters, its difficulty is
known exactly (the number of digits), and what a curriculum does to it is large enough to be seen
on two cores. Everything is a function of a seed; nothing is downloaded.

FOLDER/train.jsonl            the pool: prompt, completion, digits
FOLDER/test_L1.jsonl ... L9   fresh items of each length
FOLDER/architecture/          config.json and tokenizer of a Llama of 2 layers, without weights
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from ds_train.compare.bundled import SPECIAL, write_architecture, write_rows
from ds_train.errors import ConfigError, quoted
from ds_train.plan.presets import ds_configs_dir

RECIPE = "curriculum_digits"
"""Name of the bundled recipe."""
BASE = 5
LENGTHS = range(1, 10)
POOL_SIZE, TEST_SIZE = 40_000, 200


@dataclass(frozen=True)
class DigitsFiles:
    """Where the task's files lie."""

    folder: Path

    @property
    def train(self) -> Path:
        """The pool, all lengths equally often."""
        return self.folder / "train.jsonl"

    def test(self, length: int) -> Path:
        """Fresh items of one length."""
        return self.folder / f"test_L{length}.jsonl"

    @property
    def architecture(self) -> Path:
        """Model folder with config and tokenizer, without weights."""
        return self.folder / "architecture"

    def overrides(self) -> list[str]:
        """Settings that make the bundled recipe read these files."""
        sources = [
            f"data.validation.sources.{place}.path={self.test(length)}"
            for place, length in enumerate(LENGTHS)
        ]
        return [
            f"model.name_or_path={self.architecture}",
            f"data.train.0.path={self.train}",
            *sources,
        ]


def digits_recipe(folder: Path, given: Sequence[str | None]) -> tuple[Path, list[str]]:
    """The bundled recipe and the overrides that make it run below `folder`; writes its files there.

    `given` are the user's own overrides, which win.

    Raises:
        ConfigError: one of them is no override; the folder can't be written to.
    """
    own = [text for text in given if text is not None]
    for text in own:
        if "=" not in text:
            raise ConfigError(f"--digits brings its own recipe; remove {quoted(text)}.")
    try:
        files = write_digits(folder / "files")
    except OSError as error:
        raise ConfigError(f"--digits {folder}: can't be written to: {error.strerror}.") from None
    recipe = ds_configs_dir() / "recipes" / f"{RECIPE}.yaml"
    return recipe, [f"output_dir={folder}", *files.overrides(), *own]


def write_digits(folder: Path, seed: int = 0) -> DigitsFiles:
    """Write everything; the same seed gives the same bytes."""
    files = DigitsFiles(folder)
    files.architecture.mkdir(parents=True, exist_ok=True)
    write_rows(files.train, make_pool(POOL_SIZE, seed))
    for length in LENGTHS:
        write_rows(files.test(length), make_test(length, TEST_SIZE, seed))
    write_architecture(files.architecture, make_tokenizer(), max_length=32)
    return files


def make_pool(num_items: int, seed: int) -> Iterator[dict[str, Any]]:
    """Training items whose length is drawn evenly from 1 to 9."""
    rng = random.Random(f"digits pool {seed}")
    for _ in range(num_items):
        yield make_item(rng, rng.choice(LENGTHS))


def make_test(length: int, num_items: int, seed: int) -> Iterator[dict[str, Any]]:
    """Items of one length, drawn apart from the pool (short ones are few and stand in both)."""
    rng = random.Random(f"digits test {seed} {length}")
    for _ in range(num_items):
        yield make_item(rng, length)


def make_item(rng: random.Random, length: int) -> dict[str, Any]:
    """One sum: `{"prompt": "3+0+4=", "completion": "2", "digits": 3}`."""
    digits = [rng.randrange(10) for _ in range(length)]
    prompt = "+".join(map(str, digits)) + "="
    return {"prompt": prompt, "completion": str(sum(digits) % BASE), "digits": length}


def make_tokenizer() -> Tokenizer:
    """A token for each character; no BOS, so that n digits with their answer are 2n + 2 tokens."""
    pieces = [*SPECIAL, *map(str, range(10)), "+", "="]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer
