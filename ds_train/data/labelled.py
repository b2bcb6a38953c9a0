"""Labelled examples: a prompt (of each template), the answers to choose from, and the right one.

classification    the answers are the labels' words, the same for all rows of a source
multiple_choice   each row brings its own: a list, or several columns

An answer follows its prompt after one space. A row's right answer is named by its text, its index
(from 0) or its letter; where text and index name different ones, nothing is guessed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ds_train.data.columns import MISSING, RowFormat, describe, field_text, field_value, look_up
from ds_train.data.read import Row
from ds_train.data.sources import Source, list_names
from ds_train.data.types import Completion
from ds_train.errors import DataError, shorten

_DEFAULT_TEMPLATES = {
    "classification": "{text}\nLabel:",
    "multiple_choice": "{prompt}\nAnswer:",
}
_MOST_LETTERS = 26


@dataclass(frozen=True, slots=True)
class Labelled:
    """One labelled example as text."""

    prompts: tuple[str, ...]
    """Of each template."""
    choices: tuple[str, ...]
    """The answers, without the space before them."""
    gold: int
    """Which of them is right."""

    def completion(self, template: int, choice: int) -> Completion:
        """The example in one template, with one of its answers."""
        return Completion(self.prompts[template], f" {self.choices[choice]}")


def templates_of(source: Source, form: RowFormat) -> list[str]:
    """Prompts of a labelled source, at least one."""
    given = source.config.template
    if given is None:
        return [_DEFAULT_TEMPLATES[form.name]]
    return [given] if isinstance(given, str) else list(given)


def words_of(source: Source) -> list[str]:
    """Words that the recipe's `labels` name, each once, in their order."""
    return list(dict.fromkeys(source.config.labels.values()))


def labels_of(source: Source, words: Sequence[str] | None) -> list[str] | None:
    """What the data call each of the words: the first label that stands for it, or the word."""
    first: dict[str, str] = {}
    for label, word in source.config.labels.items():
        first.setdefault(word, label)
    return None if words is None else [first.get(word, word) for word in words]


def read_labelled(
    row: Row, source: Source, form: RowFormat, words: Sequence[str] | None = None
) -> Labelled:
    """A row of a labelled source.

    Args:
        words: answers of a classification source; that of the row alone when left out.

    Raises:
        DataError: a wrong value, with the row's place.
    """
    prompts = tuple(fill(template, row, source, form) for template in templates_of(source, form))
    if form.name == "multiple_choice":
        choices = _choices(row, form)
        return Labelled(prompts, choices, _answer(row, form, choices))
    word = word_of(row, source, form)
    choices = (word,) if words is None else tuple(words)
    return Labelled(prompts, choices, choices.index(word))


def word_of(row: Row, source: Source, form: RowFormat) -> str:
    """The word that stands for the label of a classification row."""
    value = field_value(row, form, "label")
    if not isinstance(value, str | int):
        raise DataError(
            f'{row.place} has {describe(value)} in column "{form.columns["label"]}", which must '
            "be a label (text or a whole number)."
        )
    label, labels = str(value), source.config.labels
    if labels and label not in labels:
        near = difflib.get_close_matches(label, labels, n=1)
        raise DataError(
            f'{row.place} has the label "{label}", which {source.field}.labels does not know'
            f"{f'; did you mean {near[0]}?' if near else '.'} Known: {list_names(list(labels))}."
        )
    return labels.get(label, label)


def fill(template: str, row: Row, source: Source, form: RowFormat) -> str:
    """A template with `{text}` (or `{prompt}`) and other columns of the row filled in."""
    main = "text" if form.name == "classification" else "prompt"

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name == main:
            return field_text(row, form, main)
        value = look_up(row.values, name)
        if value is MISSING or not isinstance(value, str | int | float):
            raise DataError(
                f"{source.field}.template: {{{name}}} is no text column; "
                f"the columns are {list_names(list(row.values))}."
            )
        return str(value)

    return re.sub(r"\{(\w+)\}", replace, template)


def _choices(row: Row, form: RowFormat) -> tuple[str, ...]:
    column = form.columns["choices"]
    shown = f'column "{column}"' if isinstance(column, str) else f"columns {', '.join(column)}"
    value = field_value(row, form, "choices")
    if not isinstance(value, list):
        found = "text" if isinstance(value, str) else describe(value)
        raise DataError(
            f"{row.place} has {found} in {shown}, which must be a list of answers; several columns "
            "are named one by one: columns: {choices: [a, b]}."
        )
    for number, one in enumerate(value):
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise DataError(
                f"{row.place} has {describe(one)} as answer {number} of {shown}, which must be "
                "text."
            )
        if not str(one).strip():
            raise DataError(
                f"{row.place} has an empty answer (number {number}, from 0) in {shown}; fill it "
                "in, or remove it."
            )
    texts = tuple(str(one) for one in value)
    if len(texts) < 2:
        raise DataError(
            f"{row.place} has {'one answer' if texts else 'no answers'} in {shown}; "
            "there must be at least two to choose from."
        )
    twice = next((one for number, one in enumerate(texts) if one in texts[:number]), None)
    if twice is not None:
        raise DataError(
            f'{row.place} has the answer "{shorten(twice)}" twice in {shown}; one of them would '
            "count as wrong, so give it once."
        )
    return texts


def _answer(row: Row, form: RowFormat, choices: Sequence[str]) -> int:
    """Index of the right answer."""
    column, value = form.columns["answer"], field_value(row, form, "answer")
    where = f'{row.place} has the answer {json.dumps(value, default=str)} in column "{column}"'
    last = len(choices) - 1
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value <= last:
            return value
        raise DataError(f"{where}; it has {len(choices)} answers, counted from 0 to {last}.")
    if not isinstance(value, str):
        raise DataError(
            f'{row.place} has {describe(value)} in column "{column}", which must be the index '
            "(from 0), the letter or the text of the right answer."
        )
    readings = list(_readings(value, choices))
    if len(set(readings)) == 1:
        return readings[0]
    if readings:
        raise DataError(
            f"{where}, which is the text of answer {readings[0]} and the index of answer "
            f"{readings[1]} (from 0); write an index as a number, or name a letter (A, B, ...)."
        )
    raise DataError(
        f"{where}, which is none of its {len(choices)} answers: neither a text of "
        f"{list_names([shorten(one, 40) for one in choices])}, nor an index from 0 to {last}, nor "
        f"a letter from A to {chr(ord('A') + min(last, _MOST_LETTERS - 1))}."
    )


def _readings(value: str, choices: Sequence[str]) -> list[int]:
    """What a text can mean: an answer's text, its index; a letter only where it is neither."""
    readings = [choices.index(value)] if value in choices else []
    plain = value.strip()
    if plain.isascii() and plain.isdigit() and int(plain) < len(choices):
        readings.append(int(plain))
    if not readings and len(plain) == 1 and "A" <= plain.upper() <= "Z":
        index = ord(plain.upper()) - ord("A")
        readings += [index] if index < len(choices) else []
    return readings


def content_hash(row: Row, form: RowFormat) -> int:
    """64-bit hash of what a row says (its format's fields), whatever the tokenizer and template.

    Numbers count as their text, which is all that a CSV file has of them.
    """
    values = [field_value(row, form, field) for field in sorted(form.columns)]
    texts = [str(value) if isinstance(value, int | float) else value for value in values]
    text = json.dumps(texts, ensure_ascii=False, default=str)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def text_hash(text: str) -> int:
    """64-bit hash of an answer."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
