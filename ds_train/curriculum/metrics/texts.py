"""Difficulty from the text that a sample's tokens decode to, special tokens left out.

compression   bytes of zlib.compress(text, level 6) / bytes of text, both UTF-8: what can't be
              compressed says more that is new. Short texts lie over 1, since zlib adds a header
readability   1.015 words/sentences + 84.6 syllables/words, which is 206.835 - Flesch's Reading Ease
              (R. Flesch, "A new readability yardstick", 1948): a high reading ease is easy, so the
              difference is hard. Made for English

A word is a run of letters and digits, also with an apostrophe inside, or a point between digits
(3.50). A sentence ends with . ! or ? before a space, a closing quote or bracket, or the end; a text
has at least one. A word has as many syllables as groups of vowels (a e i o u y), and at least one;
e, es and ed at its end are no vowel unless after another consonant and l (table), after s x z c g h
(boxes), after t or d (wanted).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ds_train.config.model import ModelConfig
from ds_train.curriculum.metrics.tokens import FlatTokens, Floats, chunks, progress
from ds_train.data.encode import open_tokenizer
from ds_train.data.store import TokenStore
from ds_train.data.workers import run_tasks

_CHUNK_TOKENS = 200_000
_FEW_TOKENS = 1_000_000
"""Less than this is done in the process itself: a worker takes a second to start."""

_WORD = re.compile(r"[^\W_]+(?:(?:['’]|(?<=\d)[.,](?=\d))[^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=[\s\"'’”)\]]|$)")
_VOWELS = re.compile(r"[aeiouy]+")
_SILENT = re.compile(r"(?<![^aeiouyl]l)(?:e|(?<![sxzcgh])es|(?<![td])ed)$")

UNDEFINED = {
    "compression": "has no text to compress (special tokens only)",
    "readability": "has no word, so that its readability is not defined",
}


def compression(text: str) -> float:
    """Compressed over plain size; NaN for an empty text."""
    data = text.encode()
    return len(zlib.compress(data, 6)) / len(data) if data else float("nan")


def readability(text: str) -> float:
    """206.835 - Flesch's Reading Ease; NaN for a text without a word."""
    words = _WORD.findall(text.lower())
    if not words:
        return float("nan")
    sentences = max(1, len(_SENTENCE_END.findall(text)))
    syllables = sum(map(count_syllables, words))
    return 1.015 * len(words) / sentences + 84.6 * syllables / len(words)


@lru_cache(maxsize=100_000)
def count_syllables(word: str) -> int:
    """Syllables of a lower-case word by the rule at the head of this file."""
    return max(1, len(_VOWELS.findall(_SILENT.sub("", word))))


_MEASURES: dict[str, Callable[[str], float]] = {
    "compression": compression,
    "readability": readability,
}


@dataclass(frozen=True, slots=True)
class TextDecoder:
    """From ids to text; processes get it pickled."""

    backend: Any
    """`tokenizers.Tokenizer`, or None for a slow tokenizer."""
    slow: Any
    """The tokenizer of transformers where there is no backend, else None."""

    @classmethod
    def of(cls, tokenizer: Any) -> TextDecoder:
        """Decoder of a tokenizer."""
        return cls(tokenizer.backend_tokenizer, None) if tokenizer.is_fast else cls(None, tokenizer)

    def decode(self, samples: list[list[int]]) -> list[str]:
        """Text of each sample, without special tokens."""
        if self.backend is not None:
            texts: list[str] = self.backend.decode_batch(samples, skip_special_tokens=True)
            return texts
        return [self.slow.decode(ids, skip_special_tokens=True) for ids in samples]


class TextMeter:
    """Decodes samples and measures their texts."""

    def __init__(self, tokens: FlatTokens, decoder: TextDecoder, kind: str) -> None:
        self._tokens, self._decoder, self._measure = tokens.open(), decoder, _MEASURES[kind]

    def run(self, starts: np.ndarray, lengths: np.ndarray) -> Floats:
        """float64 [samples], NaN where the metric is not defined."""
        cuts = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
        texts = self._decoder.decode([self._tokens[start:stop].tolist() for start, stop in cuts])
        return np.array([self._measure(text) for text in texts], np.float64)


def text_difficulty(kind: str, store: TokenStore, model: ModelConfig, num_workers: int) -> Floats:
    """float64 [N]: a metric of this file for every sample; NaN where it is not defined."""
    arguments = (FlatTokens.of(store), TextDecoder.of(open_tokenizer(model)), kind)
    num_workers = 1 if store.num_tokens < _FEW_TOKENS else num_workers
    tasks = chunks(store, _CHUNK_TOKENS)
    results = run_tasks(TextMeter, arguments, tasks, num_workers, doing="scoring")
    sizes = (int(lengths.sum()) for _, lengths in chunks(store, _CHUNK_TOKENS))
    parts = progress(results, sizes, store.num_tokens, kind)
    return np.concatenate([np.zeros(0), *parts])
