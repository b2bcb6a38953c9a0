"""The bundled task of `ds-train fewshot --demo`: which word of a new tongue goes with which thing.

Twelve nouns fall into four kinds, which nothing in their spelling tells; "tavor nimek" is an
adjective and a noun. A task answers each item with one of four words, the same word for all nouns
of a kind:

    tavor nimek zu ; bilun sorat mo ; rokad nimek        (zu)

There are 24 ways to share out four words among four kinds. Twelve of them are trained on, and six
others are held out, with items that no training task has. So a held-out task can't be known by
heart: it has to be read off the demonstrations, or learned from a few examples of it. Everything is
a function of a seed; nothing is downloaded.

FOLDER/task-01.jsonl ... task-12.jsonl     training tasks: text, label
FOLDER/new-01.jsonl ... new-06.jsonl       held-out tasks
FOLDER/few.jsonl  few_test.jsonl           all items of the first held-out task, in two halves: to
                                           learn from, and to be tested on
FOLDER/architecture/                       config.json and tokenizer of a Llama of 2 layers
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from ds_train.compare.bundled import SPECIAL, write_architecture, write_rows

NUM_KINDS, NOUNS_A_KIND, NUM_ADJECTIVES = 4, 3, 20
NUM_TASKS, NUM_NEW = 12, 6
SEPARATOR = ";"
Answers = tuple[str, ...]
"""The word for each kind."""


@dataclass(frozen=True)
class Tongue:
    """The words; a noun's kind is its place modulo NUM_KINDS."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    answers: Answers

    def pieces(self) -> list[str]:
        """Every word that the tokenizer knows."""
        return [SEPARATOR, *self.answers, *self.nouns, *self.adjectives]


@dataclass(frozen=True)
class KindsFiles:
    """Where the task's files lie."""

    folder: Path

    @property
    def tasks(self) -> list[Path]:
        """Training tasks."""
        return [self.folder / f"task-{number:02d}.jsonl" for number in range(1, NUM_TASKS + 1)]

    @property
    def new(self) -> list[Path]:
        """Held-out tasks."""
        return [self.folder / f"new-{number:02d}.jsonl" for number in range(1, NUM_NEW + 1)]

    @property
    def few(self) -> Path:
        """Half of the items of a held-out task, to take a few examples of."""
        return self.folder / "few.jsonl"

    @property
    def few_test(self) -> Path:
        """The other half, to be tested on."""
        return self.folder / "few_test.jsonl"

    @property
    def architecture(self) -> Path:
        """Model folder with config and tokenizer, without weights."""
        return self.folder / "architecture"


def write_kinds(folder: Path, seed: int = 0) -> KindsFiles:
    """Write everything; the same seed gives the same bytes."""
    files = KindsFiles(folder)
    files.architecture.mkdir(parents=True, exist_ok=True)
    tongue = make_tongue(seed)
    ways = share_out(tongue, seed)
    for path, way in zip(files.tasks, ways[:NUM_TASKS], strict=True):
        write_rows(path, make_items(tongue, way, new=False))
    for path, way in zip(files.new, ways[NUM_TASKS:], strict=True):
        write_rows(path, make_items(tongue, way, new=True))
    few = [*make_items(tongue, ways[NUM_TASKS], new=True)]
    few += make_items(tongue, ways[NUM_TASKS], new=False)
    random.Random(f"few {seed}").shuffle(few)
    write_rows(files.few, few[: len(few) // 2])
    write_rows(files.few_test, few[len(few) // 2 :])
    # the range as in the quickstart, and for the same reason
    write_architecture(
        files.architecture, make_tokenizer(tongue), max_length=64, initializer_range=0.08
    )
    return files


def make_tongue(seed: int) -> Tongue:
    """Distinct words: five letters for nouns and adjectives, two for answers."""
    rng = random.Random(f"tongue {seed}")
    words: dict[str, None] = {}
    num_nouns = NUM_KINDS * NOUNS_A_KIND
    while len(words) < num_nouns + NUM_ADJECTIVES:
        letters = ("bdfgklmnprstvz", "aeiou", "bdfgklmnprstvz", "aeiou", "dklmnrst")
        words["".join(map(rng.choice, letters))] = None
    names = list(words)
    return Tongue(tuple(names[:num_nouns]), tuple(names[num_nouns:]), ("zu", "mo", "ki", "ra"))


def share_out(tongue: Tongue, seed: int) -> list[Answers]:
    """Different ways to share out the answers: those of the tasks, then those of the new ones."""
    ways = list(permutations(tongue.answers))
    random.Random(f"ways {seed}").shuffle(ways)
    return ways[: NUM_TASKS + NUM_NEW]


def make_items(tongue: Tongue, way: Answers, *, new: bool) -> Iterator[dict[str, str]]:
    """Items of a task, `{"text": "tavor nimek", "label": "zu"}`.

    A quarter of all items is kept for new tasks (`new`); no other task has them.
    """
    for adjective in tongue.adjectives:
        for place, noun in enumerate(tongue.nouns):
            text, label = f"{adjective} {noun}", way[place % NUM_KINDS]
            digest = hashlib.blake2b(text.encode(), digest_size=1).digest()
            if (digest[0] % 4 == 0) == new:
                yield {"text": text, "label": label}


def make_tokenizer(tongue: Tongue) -> Tokenizer:
    """A token for each word; neither BOS nor anything between words."""
    vocabulary = {piece: place for place, piece in enumerate([*SPECIAL, *tongue.pieces()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer
