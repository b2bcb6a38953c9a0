"""How an episode lies in a row: demonstrations, separators, query, as parts (data/parts.py).

Everything is put together from tokenised samples, each of which is [BOS] input answer [EOS]::

    direct    BOS  input answer  SEP  input answer  SEP  input ANSWER EOS
    channel   BOS  answer A input  SEP  answer A input  SEP  answer A INPUT EOS

SEP is fewshot.episodes.separator, A answer_separator; what is learned is in capitals (with
`loss_on: all` also the answers, or inputs, of the demonstrations, without an end). Demonstrations
that do not fit are left out whole, those farthest from the query first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds_train.config.fewshot import EpisodesConfig
from ds_train.data.encode import TextEncoder
from ds_train.data.mix import Ints
from ds_train.data.parts import ALL, BEGINS, OWN, READ, token_part
from ds_train.data.store import TokenStore
from ds_train.errors import DataError


@dataclass(frozen=True)
class Joints:
    """Token ids that stand around and between the examples of an episode."""

    bos: int | None
    eos: int
    separator: tuple[int, ...]
    answer_separator: tuple[int, ...]

    @classmethod
    def of(cls, encoder: TextEncoder, config: EpisodesConfig) -> Joints:
        """The joints of a recipe under its tokenizer."""
        between = _inside(encoder, config.separator)
        return cls(
            encoder.bos_id, encoder.eos_id, between, _inside(encoder, config.answer_separator)
        )


def _inside(encoder: TextEncoder, text: str) -> tuple[int, ...]:
    """Ids of a text in the middle of another one, without what begins a text (a space, say)."""
    before = _ids(encoder, "a")
    both = _ids(encoder, f"a{text}")
    return both[len(before) :] if both[: len(before)] == before else _ids(encoder, text)


def _ids(encoder: TextEncoder, text: str) -> tuple[int, ...]:
    if encoder.backend is not None:
        return tuple(encoder.backend.encode(text, add_special_tokens=False).ids)
    return tuple(encoder.slow.encode(text, add_special_tokens=False))


@dataclass(frozen=True)
class Laid:
    """Episodes as parts, one after another; arrays of [e] unless said otherwise."""

    parts: Ints
    """[num_parts, 4]"""
    offsets: Ints
    """[e + 1] where the parts of each episode begin."""
    lengths: Ints
    supervised: Ints
    num_shown: Ints
    """Demonstrations that fit."""
    dropped: Ints
    """Tokens of those that do not."""


class Layout:
    """Lays out samples of a store."""

    def __init__(
        self,
        store: TokenStore,
        config: EpisodesConfig,
        joints: Joints,
        max_length: int,
        names: Sequence[str],
    ) -> None:
        """`names`: of the sources.

        Raises DataError for samples whose input and answer can't be told apart (channel).
        """
        self.joints, self.max_length, self._config = joints, max_length, config
        lengths = store.lengths.astype(np.int64)
        first, last = store.starts, store.starts + lengths - 1
        self._ends = lengths
        self._supervised = store.supervised.astype(np.int64)
        self._has_bos = np.zeros(len(lengths), np.int64)
        if joints.bos is not None:
            self._has_bos[:] = store.flat_tokens[first] == joints.bos
        learned_end = store.flat_mask[last] == 1
        self._has_eos = ((store.flat_tokens[last] == joints.eos) & learned_end).astype(np.int64)
        self._answers = lengths
        if config.direction == "channel":
            self._answers = _answer_starts(store, names)
            self._check_channel(store, names)

    def _check_channel(self, store: TokenStore, names: Sequence[str]) -> None:
        inputs = self._answers - self._has_bos
        if (inputs <= 0).any():
            sample = int(np.argmax(inputs <= 0))
            raise DataError(
                f"fewshot.episodes.direction = channel: {_place(store, sample, names)} has no "
                "input that could be learned; remove it, or take direct."
            )
        longest = int(self._ends.max()) + len(self.joints.answer_separator)
        if longest > self.max_length:
            raise DataError(
                f"fewshot.episodes.direction = channel: with answer_separator an example has "
                f"{longest:,} tokens, but data.max_length = {self.max_length:,}; raise it."
            )

    def lay(self, demonstrations: Ints, queries: Ints, *, learn_all: bool = False) -> Laid:
        """Episodes of samples [e, k] before samples [e]; `learn_all`: from the former too."""
        fits, dropped = self._fitting(demonstrations, queries)
        blocks = [self._begin(queries)]
        for column in range(demonstrations.shape[1]):
            shown = self._example(demonstrations[:, column], query=False, learn=learn_all)
            blocks.append(_where(fits[:, column], shown))
        blocks.append(self._example(queries, query=True, learn=True))
        grid = np.concatenate([block for block, _ in blocks], axis=1)
        kept = np.concatenate([valid for _, valid in blocks], axis=1)
        counts = kept.sum(axis=1)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        parts = grid[kept]
        parts[offsets[:-1], 3] |= BEGINS
        spans = np.concatenate([[0], np.cumsum(parts[:, 2] - parts[:, 1])])
        learned = self._num_learned(queries) + self._has_eos[queries]
        if learn_all:
            learned += (self._num_learned(demonstrations) * fits).sum(axis=1)
        lengths = spans[offsets[1:]] - spans[offsets[:-1]]
        return Laid(parts, offsets, lengths, learned, fits.sum(axis=1), dropped)

    def _num_learned(self, samples: Ints) -> Ints:
        """Supervised tokens of examples, their EOS not counted."""
        if self._config.direction == "channel":
            return self._answers[samples] - self._has_bos[samples]
        return self._supervised[samples] - self._has_eos[samples]

    def _size(self, samples: Ints) -> Ints:
        """Tokens of an example without BOS and EOS."""
        size = self._ends[samples] - self._has_bos[samples] - self._has_eos[samples]
        extra = len(self.joints.answer_separator) if self._config.direction == "channel" else 0
        return size + extra

    def _fitting(self, demonstrations: Ints, queries: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """bool [e, k] which demonstrations fit, and the tokens [e] of those that don't."""
        sizes = self._size(demonstrations) + len(self.joints.separator)
        total = self._size(queries) + self._has_bos[queries] + self._has_eos[queries]
        fits = np.zeros(demonstrations.shape, bool)
        for column in reversed(range(demonstrations.shape[1])):
            fits[:, column] = total + sizes[:, column] <= self.max_length
            total = total + np.where(fits[:, column], sizes[:, column], 0)
        return fits, (sizes * ~fits).sum(axis=1)

    def _begin(self, queries: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """BOS, where the samples have one."""
        return _tokens(len(queries), [self.joints.bos or 0]), self._has_bos[queries, None] == 1

    def _example(
        self, samples: Ints, *, query: bool, learn: bool
    ) -> tuple[Ints, NDArray[np.bool_]]:
        """Parts [e, p, 4] of one example each, and which of them are there."""
        start, end = self._has_bos[samples], self._ends[samples] - self._has_eos[samples]
        whole_end = self._ends[samples]
        num = len(samples)
        if self._config.direction == "direct":
            stop = whole_end if query else end
            columns = [_span(samples, start, stop, OWN if learn else READ)]
        else:
            answer = self._answers[samples]
            columns = [
                _span(samples, answer, end, READ),
                _tokens(num, self.joints.answer_separator),
                _span(samples, start, answer, ALL if learn else READ),
            ]
            if query:
                columns.append(_span(samples, end, whole_end, ALL))
        if not query:
            columns.append(_tokens(num, self.joints.separator))
        grid = np.concatenate(columns, axis=1)
        return grid, grid[:, :, 2] > grid[:, :, 1]


def _span(samples: Ints, starts: Ints, stops: Ints, role: int) -> Ints:
    """[e, 1, 4]"""
    return np.stack([samples, starts, stops, np.full_like(samples, role)], axis=1)[:, None, :]


def _tokens(num: int, ids: tuple[int, ...] | list[int]) -> Ints:
    """[num, len(ids), 4]: the same tokens in every episode."""
    row = np.array([[token_part(one), 0, 1, READ] for one in ids], np.int64).reshape(-1, 4)
    return np.tile(row, (num, 1, 1))


def _where(
    kept: NDArray[np.bool_], block: tuple[Ints, NDArray[np.bool_]]
) -> tuple[Ints, NDArray[np.bool_]]:
    grid, valid = block
    return grid, valid & kept[:, None]


def _answer_starts(store: TokenStore, names: Sequence[str]) -> Ints:
    """[N] first supervised token of each sample; DataError unless the rest is supervised too."""
    starts = np.empty(store.num_samples, np.int64)
    for sample in range(store.num_samples):
        mask = store.mask(sample)
        starts[sample] = int(mask.argmax())
        if not mask[starts[sample] :].all():
            raise DataError(
                f"fewshot.episodes.direction = channel: {_place(store, sample, names)} has no "
                "answer that stands at its end (a conversation of several turns, say); take direct."
            )
    return starts


def _place(store: TokenStore, sample: int, names: Sequence[str]) -> str:
    return f"row {int(store.ordinals[sample]) + 1:,} of {names[int(store.sources[sample])]}"
