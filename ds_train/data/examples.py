"""Which samples of a store are renderings of the same labelled example.

An example is one row of the data. It may be rendered in several templates, and in each of them with
its right answer alone or with every answer it offers. Its samples lie together, in the order of
(template, choice); a group is the samples of one template. So with two templates and three answers,
of which the second is right::

    sample     0  1  2  3  4  5
    template   0  0  0  1  1  1
    choice     0  1  2  0  1  2
    gold       .  x  .  .  x  .
    group      0  0  0  1  1  1

A sample without a template (a conversation, a document, a piece of one) is an example of its own,
with choice -1, and gold.

    row_hashes.bin    uint64 [N]  what the row says, whatever the tokenizer and the template
    templates.bin     int16  [N]  -1 where the source has none
    choices.bin       int32  [N]  index among the example's answers; -1 where it has none
    golds.bin         uint8  [N]  1 for the right answer
    answers.bin       uint64 [N]  hash of the answer's text
    answer_chars.bin  int32  [N]  its characters, without the space before it
    answer_bytes.bin  int32  [N]  its UTF-8 bytes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds_train.data.labelled import text_hash
from ds_train.data.mix import Ints, keyed_words

EXAMPLE_DTYPES = {
    "row_hashes": "<u8",
    "templates": "<i2",
    "choices": "<i4",
    "golds": "|u1",
    "answers": "<u8",
    "answer_chars": "<i4",
    "answer_bytes": "<i4",
}
"""Arrays of a store that has examples, beside those of every store."""


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What a store keeps of one sample of an example."""

    row_hash: int
    template: int = -1
    choice: int = -1
    gold: bool = True
    answer: str = ""

    @staticmethod
    def arrays(samples: Sequence[SampleFacts]) -> dict[str, np.ndarray]:
        """The arrays of EXAMPLE_DTYPES, [num_samples] each."""
        columns = {
            "row_hashes": [one.row_hash for one in samples],
            "templates": [one.template for one in samples],
            "choices": [one.choice for one in samples],
            "golds": [one.gold for one in samples],
            "answers": [text_hash(one.answer) for one in samples],
            "answer_chars": [len(one.answer) for one in samples],
            "answer_bytes": [len(one.answer.encode("utf-8", "surrogatepass")) for one in samples],
        }
        return {name: np.array(columns[name], dtype) for name, dtype in EXAMPLE_DTYPES.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """The examples of a TokenStore's N samples."""

    example: NDArray[np.int64]
    """[N] number of the example, ascending from 0."""
    template: NDArray[np.int16]
    """[N] from 0; 0 where the source has no template."""
    choice: NDArray[np.int32]
    """[N] index among the example's answers; -1 where it has none."""
    gold: NDArray[np.bool_]
    """[N] True for the right answer."""
    answer: NDArray[np.uint64]
    """[N] hash of the answer's text; equal answers have equal hashes."""
    answer_chars: NDArray[np.int32]
    """[N] characters of the answer, without the space before it; 0 where there is none."""
    answer_bytes: NDArray[np.int32]
    """[N] UTF-8 bytes of the answer."""
    row_hash: NDArray[np.uint64]
    """[N] what the row says; equal rows have equal hashes, whatever the tokenizer."""
    starts: Ints
    """[num_examples + 1] first sample of each example."""
    group: NDArray[np.int64]
    """[N] number of the group, ascending from 0."""
    group_starts: Ints
    """[num_groups + 1] first sample of each group."""
    group_gold: Ints
    """[num_groups] the group's sample with the right answer; -1 in a selection without it."""
    first_group: Ints
    """[num_examples + 1] first group of each example."""

    @classmethod
    def of(
        cls, arrays: Mapping[str, np.ndarray], sources: np.ndarray, ordinals: np.ndarray
    ) -> Examples:
        """From the arrays of EXAMPLE_DTYPES and the source and row of each sample."""
        alone = arrays["templates"] < 0
        begins = np.ones(len(alone), bool)
        begins[1:] = (np.diff(sources) != 0) | (np.diff(ordinals) != 0) | alone[1:] | alone[:-1]
        return cls._of_borders(
            begins,
            template=np.maximum(arrays["templates"], 0),
            choice=np.asarray(arrays["choices"]),
            gold=np.asarray(arrays["golds"]).astype(bool),
            answer=np.asarray(arrays["answers"]),
            answer_chars=np.asarray(arrays["answer_chars"]),
            answer_bytes=np.asarray(arrays["answer_bytes"]),
            row_hash=np.asarray(arrays["row_hashes"]),
        )

    @classmethod
    def _of_borders(cls, begins: NDArray[np.bool_], **columns: np.ndarray) -> Examples:
        """`begins` [N]: where a new example begins."""
        num_samples, template, gold = len(begins), columns["template"], columns["gold"]
        group_begins = begins.copy()
        group_begins[1:] |= np.diff(template) != 0
        group = np.cumsum(group_begins) - 1
        group_starts = np.append(np.flatnonzero(group_begins), num_samples)
        group_gold = np.full(len(group_starts) - 1, -1, np.int64)
        golds = np.flatnonzero(gold)
        group_gold[group[golds]] = golds
        starts = np.append(np.flatnonzero(begins), num_samples)
        return cls(
            example=np.cumsum(begins) - 1,
            starts=starts,
            group=group,
            group_starts=group_starts,
            group_gold=group_gold,
            first_group=np.searchsorted(group_starts, starts),
            **columns,
        )

    def select(self, indices: Ints) -> Examples | None:
        """Those of some samples, renumbered; None unless the indices rise."""
        if np.any(np.diff(indices) <= 0):
            return None
        begins = np.ones(len(indices), bool)
        begins[1:] = np.diff(self.example[indices]) != 0
        names = ("template", "choice", "gold", "answer", "answer_chars", "answer_bytes", "row_hash")
        return self._of_borders(begins, **{name: getattr(self, name)[indices] for name in names})

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self.starts) - 1

    @property
    def has_renderings(self) -> bool:
        """Whether any example has more than one sample."""
        return self.num_examples < len(self.example)

    def num_templates(self) -> Ints:
        """[num_examples] groups of each example."""
        return np.diff(self.first_group)

    def num_choices(self) -> Ints:
        """[num_groups] samples of each group: all answers of the example, or the right one."""
        return np.diff(self.group_starts)

    def draw_groups(self, examples: Ints, seed: int, epoch: int) -> Ints:
        """[n] a group of each of the examples: its template for this epoch, drawn by hash.

        An example that comes again in the same epoch draws again. What an example draws does not
        depend on the other examples.
        """
        words = keyed_words(self.num_examples, seed, "template", epoch)[examples]
        nth = _occurrence(examples)
        for repeat in range(1, int(nth.max(initial=0)) + 1):
            again = nth == repeat
            more = keyed_words(self.num_examples, seed, "template", epoch, repeat)
            words[again] = more[examples[again]]
        first, count = self.first_group[examples], self.num_templates()[examples]
        return first + (words % count.astype(np.uint64)).astype(np.int64)

    def draw(self, examples: Ints, seed: int, epoch: int) -> Ints:
        """[n] a sample of each of the examples: the right answer in a template drawn by hash."""
        return self.group_gold[self.draw_groups(examples, seed, epoch)]


def _occurrence(values: Ints) -> Ints:
    """[n] how often each value stands before its place."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    sizes = np.diff(np.append(begins, len(values)))
    result = np.empty(len(values), np.int64)
    result[order] = np.arange(len(values)) - np.repeat(begins, sizes)
    return result
