"""How well a model predicts plain text: bits per byte, bits per token, perplexity.

Every token is predicted once, with as much context as the model reads; the windows are those of
lm_eval's loglikelihood_rolling. With a window of 4 tokens and P the token that begins a text::

    reads      P 0 1 2    3 4 5 6    5 6 7 8
    predicts   0 1 2 3    4 5 6 7        8 9      the last window reaches back as far as it can

Each text begins anew. Bits per byte compare models of any tokenizer, as they ask for the same
text; per token and per word they do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ds_train.errors import DataError, ModelError, quoted
from ds_train.evaluate.requests import Request

_LARGEST_EXPONENT = 700.0


class Scorer(Protocol):
    """What scores requests (`RequestScorer`)."""

    max_length: int

    def score(self, requests: Sequence[Request], progress: str | None = None) -> Any:
        """Object with `logprob` float64 [n]."""
        ...


@dataclass(frozen=True)
class TextScore:
    """What a model says to some text; scores of several texts add up."""

    nats: float
    """minus the summed log-probability of its tokens"""
    num_tokens: int
    num_bytes: int
    """of its UTF-8"""
    num_words: int
    """pieces between white space, as lm_eval counts them"""
    num_unknown: int = 0
    """tokens that stand for text which the tokenizer can't write"""

    def __add__(self, other: TextScore) -> TextScore:
        return TextScore(
            self.nats + other.nats,
            self.num_tokens + other.num_tokens,
            self.num_bytes + other.num_bytes,
            self.num_words + other.num_words,
            self.num_unknown + other.num_unknown,
        )

    @property
    def bits_per_byte(self) -> float:
        """What a compressor with this model would need for each byte."""
        return self.nats / self.num_bytes / math.log(2)

    @property
    def bits_per_token(self) -> float:
        """Mean bits of a token."""
        return self.nats / self.num_tokens / math.log(2)

    def numbers(self) -> dict[str, float | int]:
        """All of it by name; perplexities are exp(nats per token, word or byte)."""
        return {
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "num_words": self.num_words,
            "num_unknown_tokens": self.num_unknown,
            "loss": self.nats / self.num_tokens,
            "bits_per_byte": self.bits_per_byte,
            "bits_per_token": self.bits_per_token,
            "perplexity": _exp(self.nats / self.num_tokens),
            "word_perplexity": _exp(self.nats / self.num_words),
            "byte_perplexity": _exp(self.nats / self.num_bytes),
        }


def _exp(value: float) -> float:
    return math.exp(value) if value < _LARGEST_EXPONENT else math.inf


def rolling_requests(ids: Sequence[int], prefix: int, max_length: int) -> list[Request]:
    """Requests that predict every one of `ids` once, the first after `prefix`.

    Args:
        max_length: tokens that the model reads at most, at least 1.
    """
    requests = []
    for start in range(0, len(ids), max_length):
        stop = min(start + max_length, len(ids))
        if start == 0:
            requests.append(Request([prefix], ids[:stop]))
        else:
            # one token of context for a full window, more of it for the last one
            requests.append(Request(ids[stop - max_length - 1 : start], ids[start:stop]))
    return requests


def score_texts(
    scorer: Scorer, tokenizer: Any, texts: Sequence[str], progress: str | None = None
) -> list[TextScore]:
    """Score of each text; a collective call where the scorer has several ranks.

    Args:
        tokenizer: Hugging Face tokenizer of the model. It encodes without special tokens; BOS
            (else EOS) comes before each text and is not predicted itself.

    Raises:
        DataError: a text without tokens; ModelError: the tokenizer has neither BOS nor EOS.
    """
    prefix = first_token(tokenizer)
    requests: list[Request] = []
    owners: list[int] = []
    counts: list[tuple[int, int]] = []
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        if not ids:
            raise DataError(f"text {number}: has no tokens, so there is nothing to predict.")
        windows = rolling_requests(ids, prefix, scorer.max_length)
        requests += windows
        owners += [number] * len(windows)
        counts.append((len(ids), _num_unknown(tokenizer, ids)))
    logprob = scorer.score(requests, progress).logprob
    nats = np.zeros(len(texts))
    np.subtract.at(nats, owners, logprob)
    return [
        TextScore(float(sum_), num_tokens, len(text.encode()), len(re.split(r"\s+", text)), unknown)
        for sum_, (num_tokens, unknown), text in zip(nats, counts, texts, strict=True)
    ]


def first_token(tokenizer: Any) -> int:
    """What stands before a text's first token: BOS, else EOS; ModelError without either."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ModelError(
        "the tokenizer has neither a beginning- nor an end-of-sequence token, so the first token "
        "of a text has nothing before it; give it one of them."
    )


def _num_unknown(tokenizer: Any, ids: Sequence[int]) -> int:
    unknown = tokenizer.unk_token_id
    # some tokenizers name their EOS as unknown token, which plain text does not hold
    return 0 if unknown is None else sum(one == unknown for one in ids)


def read_texts(paths: Sequence[str | Path]) -> list[str]:
    """The text of each file, line ends as they are.

    Raises:
        DataError: all files that are missing, empty or not UTF-8.
    """
    texts, faults = [], []
    for path in map(Path, paths):
        try:
            texts.append(path.read_bytes().decode("utf-8"))
        except UnicodeDecodeError as error:
            faults.append(
                f"--text {quoted(path)}: not UTF-8 at byte {error.start:,}; convert it first."
            )
            continue
        except OSError as error:
            faults.append(f"--text {quoted(path)}: {_why(path, error)}")
            continue
        if not texts[-1]:
            faults.append(f"--text {quoted(path)}: is empty; there is nothing to predict.")
    if faults:
        raise DataError(faults)
    return texts


def _why(path: Path, error: OSError) -> str:
    if path.is_dir():
        return "is a folder; name its files."
    if not path.exists():
        return "no such file."
    return f"can't be read ({error.strerror})."
