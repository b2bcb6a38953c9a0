"""Rank classification: is the right answer the likeliest of an example's candidates?

    none     summed log-probability of the answer's tokens
    tokens   divided by their number, EOS among them: T-Few's score (Liu et al. 2022, section 3.2)
    chars    divided by the answer's characters, without the space before it
    bytes    divided by its UTF-8 bytes, without the space before it

Every sum holds the answer's end (EOS), as training does; lm_eval's does not, so that `chars` is its
`acc_norm` in spirit and not to the digit (`ds-train evaluate --tasks` is). Of equal scores the
first candidate wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds_train.data.store import TokenStore
from ds_train.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

NORMALISATIONS = ("none", "tokens", "chars", "bytes")
RANK_METRICS = ("rank_accuracy", *(f"rank_accuracy_{name}" for name in NORMALISATIONS))
"""Names of the shares; `rank_accuracy` is that of `tokens`."""


@dataclass(frozen=True)
class Trials:
    """Candidates to rank: c of them, those of one trial together. An example with several templates
    is several trials."""

    samples: Ints
    """[c] of the store, ascending."""
    starts: Ints
    """[num_trials] first candidate of each trial."""
    example: Ints
    """[num_trials] example of each trial, ascending."""
    gold: Flags
    """[c] the right answer."""
    lengths: Mapping[str, Floats]
    """Normalisation -> [c] what the sums are divided by; `none` is left out."""

    @classmethod
    def of(cls, store: TokenStore, members: Flags | None = None) -> Trials | None:
        """Those among a store's examples (or its `members` [N]) that have answers to choose from;
        None where no example has."""
        examples = store.examples
        if examples is None:
            return None
        first, sizes = examples.group_starts[:-1], examples.num_choices()
        chosen = (sizes > 1) & (examples.group_gold >= 0)
        if members is not None:
            chosen &= members[first]
        if not chosen.any():
            return None
        samples = np.flatnonzero(chosen[examples.group])
        sizes = sizes[chosen]
        return cls(
            samples=samples,
            starts=np.cumsum(sizes) - sizes,
            example=examples.example[first[chosen]],
            gold=examples.gold[samples],
            lengths={
                "tokens": store.supervised[samples].astype(np.float64),
                "chars": examples.answer_chars[samples].astype(np.float64),
                "bytes": examples.answer_bytes[samples].astype(np.float64),
            },
        )

    @property
    def num_examples(self) -> int:
        """Examples, however many templates they have."""
        return len(np.unique(self.example))

    def mean(self, of_trials: Floats) -> float:
        """Mean over the examples of the mean over an example's trials [num_trials]."""
        _, number, counts = np.unique(self.example, return_inverse=True, return_counts=True)
        return float((of_trials / counts[number]).sum() / len(counts))


def check_rankable(store: TokenStore | None, part: str) -> None:
    """DataError where no example of a part of the data (as `part` calls it) can be ranked."""
    if store is not None and Trials.of(store) is None:
        raise DataError(
            f"evaluate.rank_classification: no example of {part} has answers to choose from; use "
            "format: classification (with two labels or more) or multiple_choice there, or leave "
            "it out."
        )


def rank_accuracies(trials: Trials, log_probability: Floats) -> dict[str, float]:
    """Share of the examples whose right answer is ranked first, by each normalisation.

    An example with several templates counts once, with the share of its templates.

    Args:
        log_probability: [c] sum over the candidate's tokens.

    Returns:
        The RANK_METRICS, and `rank_chance`: what guessing reaches.
    """
    found = {
        f"rank_accuracy_{name}": trials.mean(
            _is_right(trials, _normalised(trials, log_probability, name)).astype(np.float64)
        )
        for name in NORMALISATIONS
    }
    sizes = np.diff(trials.starts, append=len(trials.gold))
    chance = trials.mean(1 / sizes.astype(np.float64))
    return {"rank_accuracy": found["rank_accuracy_tokens"], **found, "rank_chance": chance}


def _normalised(trials: Trials, log_probability: Floats, name: str) -> Floats:
    return log_probability if name == "none" else log_probability / trials.lengths[name]


def _is_right(trials: Trials, scores: Floats) -> Flags:
    """[num_trials] whether the first highest score of each trial is that of a right answer."""
    best = np.maximum.reduceat(scores, trials.starts)  # NaN where there is one: nothing is right
    sizes = np.diff(trials.starts, append=len(scores))
    places = np.flatnonzero(scores == np.repeat(best, sizes))
    owner = np.repeat(np.arange(len(sizes)), sizes)[places]
    trial, first = np.unique(owner, return_index=True)
    right = np.zeros(len(sizes), dtype=bool)
    right[trial] = trials.gold[places[first]]
    return right
