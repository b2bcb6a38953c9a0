"""From labelled rows to tokens: every template, with the right answer or with all of them.

An example goes as a whole: where one of its renderings is longer than a row, none is kept. An
answer that fills a row by itself is a fault of the data, unless the recipe says `drop`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from ds_train.config.data import LABELLED_FORMATS, LossOn, OverLength
from ds_train.config.run import RunConfig
from ds_train.data.chat import render_sample
from ds_train.data.columns import RowFormat
from ds_train.data.encode import TextEncoder
from ds_train.data.examples import SampleFacts
from ds_train.data.labelled import (
    Labelled,
    content_hash,
    read_labelled,
    templates_of,
    word_of,
    words_of,
)
from ds_train.data.read import Row, read_rows
from ds_train.data.sources import Source, list_names
from ds_train.data.types import TokenRow
from ds_train.errors import DataError, shorten

_MOST_WORDS = 1_000
"""Classes of a source whose every answer is rendered; more are hardly labels."""
_BATCH = 4_000
"""About so many renderings are tokenised at once."""

Place = tuple[int, int]
"""Template and choice."""
OneSample = tuple[Row, TokenRow, SampleFacts]


@dataclass(frozen=True, slots=True)
class Labels:
    """How the rows of a labelled source are rendered."""

    words: tuple[str, ...] | None
    """Answers of a classification source; None where each row brings its own."""
    all_choices: bool
    """With every answer, not only the right one."""
    may_drop: bool
    """The recipe says what happens to an answer that fills a row by itself: it is left out."""


def all_choices(config: RunConfig, *, validation: bool) -> bool:
    """Whether the sources (of validation, or of training) are rendered with every answer."""
    fewshot, ranked = config.fewshot, config.evaluate.rank_classification
    if fewshot is not None and fewshot.episodes is not None and fewshot.episodes.permute_labels:
        return True
    if validation:
        return ranked
    if fewshot is not None and fewshot.losses is not None:
        return True
    has_dev = fewshot is not None and fewshot.subset is not None and fewshot.subset.dev
    return ranked and (has_dev or bool(config.data.validation.fraction))


def recipe_wants_examples(config: RunConfig) -> bool:
    """Whether the recipe asks for labelled examples whatever the data look like."""
    return config.fewshot is not None or config.evaluate.rank_classification


def keeps_examples(config: RunConfig, source: Source, form: RowFormat) -> bool:
    """Whether a source makes the store say which samples render the same example."""
    if recipe_wants_examples(config) or form.name == "multiple_choice":
        return True
    return form.name in LABELLED_FORMATS and len(templates_of(source, form)) > 1


def plan_labels(
    config: RunConfig,
    source: Source,
    form: RowFormat,
    loss_on: LossOn,
    over_length: OverLength,
    known: Sequence[str] = (),
) -> Labels:
    """How a labelled source is rendered.

    Args:
        known: labels that it has although no row of it may bear them.

    Raises:
        DataError: settings that would spoil its answers, or labels that can't be told apart.
    """
    every = all_choices(config, validation=source.validation)
    if over_length in ("truncate", "split"):
        raise DataError(
            f"data.over_length = {over_length}: the answers of {source.field} ({source.name}) "
            "stand at the end of its rows and would be cut off; set drop or error, or leave it out "
            "(then plain text is split and the rest dropped)."
        )
    if every and loss_on == "all":
        raise DataError(
            f"{source.field} ({source.name}): loss_on = all with all answers of an example: only "
            "what is learned from tells them apart; set loss_on: completion."
        )
    words = None
    if form.name == "classification":
        words = tuple(words_of(source)) or _words_in(source, form, known)
        _check_words(source, words, every=every)
    return Labels(words, every, config.data.over_length == "drop")


def _words_in(source: Source, form: RowFormat, known: Sequence[str]) -> tuple[str, ...]:
    """Labels that stand in the data, in order: numbers by their value, words by their letters."""
    words = {word_of(row, source, form) for row in read_rows(source)} | set(known)
    if all(word.isascii() and word.isdigit() for word in words):
        return tuple(sorted(words, key=lambda word: (int(word), word)))
    return tuple(sorted(words))


def _check_words(source: Source, words: Sequence[str], *, every: bool) -> None:
    where = f"{source.field} ({source.name})"
    if not all(word.strip() for word in words):
        of = next((key for key, word in source.config.labels.items() if not word.strip()), None)
        raise DataError(
            f"{where}: a row has an empty label; fill it in, or remove the row."
            if of is None
            else f'{source.field}.labels.{of} = "": is empty; give the word that stands for it.'
        )
    if every and len(words) == 1:
        raise DataError(
            f"{where}: has one class only ({words[0]}), so there is no wrong answer to compare "
            "the right one with; name the others in labels, or add rows of them."
        )
    if every and len(words) > _MOST_WORDS:
        raise DataError(
            f"{where}: has {len(words):,} different labels ({list_names(words[:3])}, ...), each of "
            f"which would be an answer of every row; at most {_MOST_WORDS:,} are. Is "
            f'"{source.config.columns.get("label", "label")}" the column of the label?'
        )


def check_same_words(source: Source, labels: Labels, trained: Sequence[Source]) -> None:
    """DataError where held-out labels are asked for as they stand, and trained on as words.

    Args:
        source: of validation.
        trained: labelled sources of training.
    """
    words = set(labels.words or ())
    for other in trained:
        given = other.config.labels
        if words and not source.config.labels and words <= given.keys() - set(given.values()):
            raise DataError(
                f"{source.field} ({source.name}): has the labels {list_names(sorted(words))}, for "
                f"which {other.field}.labels gives other words; the model would be asked for what "
                f"it has never seen. Give {source.field} the same labels."
            )


class ExampleTokeniser:
    """Turns the rows of one labelled source into samples."""

    def __init__(
        self,
        source: Source,
        form: RowFormat,
        labels: Labels,
        encoder: TextEncoder,
        loss_on: LossOn,
        over_length: OverLength,
        max_length: int,
    ) -> None:
        self._source, self._form, self._labels = source, form, labels
        self._encoder, self._loss_on = encoder, loss_on
        self._over_length, self._max_length = over_length, max_length
        self.answers: set[frozenset[str]] = set()
        """Answers that the rows offer: at most two of the different sets, of multiple choice."""

    def run(self, rows: Sequence[Row], counts: Counter[str]) -> Iterator[OneSample]:
        """Samples of the rows, those of an example together; counts what is left out."""
        batch: list[tuple[Row, Labelled]] = []
        size = 0
        for row in rows:
            example = read_labelled(row, self._source, self._form, self._labels.words)
            if self._labels.words is None and len(self.answers) < 2:
                self.answers.add(frozenset(example.choices))
            batch.append((row, example))
            size += len(self._places(example))
            if size >= _BATCH:
                yield from self._batch(batch, counts)
                batch, size = [], 0
        yield from self._batch(batch, counts)

    def _places(self, example: Labelled) -> list[Place]:
        templates = range(len(example.prompts))
        choices = range(len(example.choices)) if self._labels.all_choices else [example.gold]
        return list(product(templates, choices))

    def _batch(
        self, batch: Sequence[tuple[Row, Labelled]], counts: Counter[str]
    ) -> Iterator[OneSample]:
        places = [self._places(example) for _, example in batch]
        rendered = [
            render_sample(example.completion(*place), self._loss_on, None, row.place)
            for (row, example), own in zip(batch, places, strict=True)
            for place in own
        ]
        tokens = iter(self._encoder.encode(rendered))
        for (row, example), own in zip(batch, places, strict=True):
            parts = [(place, next(tokens)) for place in own]
            if not self._fits(row, example, parts):
                counts["dropped_too_long"] += 1
                counts["dropped_tokens"] += sum(len(one.ids) for _, one in parts)
                continue
            content = content_hash(row, self._form)
            for (template, choice), one in parts:
                counts["boundary_tokens"] += one.boundary_tokens
                is_gold, answer = choice == example.gold, example.choices[choice]
                yield row, one, SampleFacts(content, template, choice, is_gold, answer)

    def _fits(self, row: Row, example: Labelled, parts: Sequence[tuple[Place, TokenRow]]) -> bool:
        """Whether every rendering fits a row; DataError where one that does not may not go."""
        limit, fits = self._max_length, True
        for (_, choice), one in parts:
            if len(one.ids) <= limit:
                continue
            fits, answer = False, f'"{shorten(example.choices[choice])}"'
            alone = int(one.mask.sum())
            if self._loss_on != "all" and alone >= limit and not self._labels.may_drop:
                raise DataError(
                    f"{row.place}: the answer {answer} has {alone:,} tokens, which leaves no room "
                    f"for its prompt in data.max_length = {limit:,}; raise it, shorten the answer, "
                    "or set data.over_length: drop to leave the row out."
                )
            if self._over_length == "error":
                raise DataError(
                    f"{row.place} has {len(one.ids):,} tokens with the answer {answer}, but "
                    f"data.max_length = {limit:,}; raise it, or set data.over_length: drop."
                )
        return fits
