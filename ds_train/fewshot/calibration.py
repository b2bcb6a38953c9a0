"""Scores of candidate answers: normalised by length, calibrated against a model's own bias.

A model prefers some answers whatever the question. With s_y the score of answer y (its summed
log-probability, perhaps divided by its length) and p = softmax(s) over the candidates:

    contextual   log p_y - log p_cf,y,  p_cf the mean of p over inputs without content, in the same
                 context (Zhao et al. 2021, arXiv 2102.09690: diag(p_cf)^-1 p)
    batch        s_y - log mean_i p_i,y  over the test inputs i (Zhou et al. 2024, arXiv 2309.17249)
    pmi          log p(y | x) - log p(y | nothing), lm_eval's acc_mutual_info
                 (Holtzman et al. 2021, arXiv 2104.08315)

Arrays end in the candidates [m]; all in float64. Of equal scores the first candidate wins.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Inputs that say nothing: those of Zhao et al. 2021, section 4."""

BATCH_REMARK = (
    "batch calibration estimates the bias from the test inputs themselves (not from their "
    "answers); compare it with methods that may do so too"
)


def log_softmax(scores: Floats) -> Floats:
    """Log-probabilities among the candidates [..., m]."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    logs: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs


def _log_mean(log_probabilities: Floats) -> Floats:
    """log of the mean probability over the rows [n, m] -> [m], without underflow."""
    top = log_probabilities.max(axis=0)
    means: Floats = top + np.log(np.exp(log_probabilities - top).mean(axis=0))
    return means


def normalise(log_likelihoods: Floats, lengths: Floats | None) -> Floats:
    """Summed log-likelihoods [..., m] per unit of the answers' lengths [m]; None: as they are."""
    return log_likelihoods if lengths is None else log_likelihoods / lengths


def contextual(scores: Floats, content_free: Floats) -> Floats:
    """Scores [m] less the bias seen with content-free inputs [c, m] in the same context."""
    bias = _log_mean(log_softmax(content_free))
    # p_cf is a mean of distributions, which sums to one as it is
    return log_softmax(scores) - bias


def batch(scores: Floats) -> Floats:
    """Scores [n, m] of all test inputs, less the log of their mean probabilities [m]."""
    return scores - _log_mean(log_softmax(scores))


def pmi(log_likelihoods: Floats, unconditional: Floats) -> Floats:
    """Log-likelihoods [m] given the question, less those given nothing [m]."""
    return log_likelihoods - unconditional


def is_right(scores: Floats, gold: Collection[int]) -> float:
    """1.0 if the best of the scores [m] is one of the right answers, else 0.0."""
    return float(int(np.argmax(scores)) in gold)


def batch_accuracy(items: Sequence[tuple[Sequence[float], Sequence[int]]]) -> float:
    """Accuracy after batch calibration of (scores [m], right answers) of all test inputs."""
    calibrated = batch(np.array([scores for scores, _ in items], dtype=np.float64))
    pairs = zip(calibrated, items, strict=True)
    return float(np.mean([is_right(scores, gold) for scores, (_, gold) in pairs]))
