"""Accuracies of candidate answers by every normalisation and calibration that is asked for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ds_train.fewshot import calibration
from ds_train.fewshot.calibration import Floats


@dataclass(frozen=True)
class Candidates:
    """The answers of one document, m of them, and what is known of each."""

    log_likelihoods: Floats
    """[m] given the question"""
    lengths: dict[str, Floats]
    """[m] by the name of the normalisation that divides by them"""
    content_free: Floats
    """[c, m] given questions without content, c = 0 where not asked for"""
    unconditional: Floats | None
    """[m] given nothing"""
    gold: frozenset[int]
    """the right ones"""


def accuracy_pairs(
    normalisations: Collection[str], calibrations: Collection[str]
) -> list[tuple[str, str]]:
    """Every normalisation without and with every calibration.

    `pmi` among the normalisations is log p(y | x) - log p(y), whatever the others are, and stands
    beside the accuracy of log p(y | x).
    """
    lengths = [one for one in normalisations if one != "pmi"]
    pairs = [(one, other) for one in lengths or ["none"] for other in ("none", *calibrations)]
    if "pmi" in normalisations:
        pairs += [("none", "none"), ("none", "pmi")]
    return list(dict.fromkeys(pairs))


def accuracy_name(normalisation: str, calibrated: str) -> str:
    """`acc`, `acc_tokens`, `acc_contextual`, `acc_tokens_contextual`, ..."""
    parts = ["acc", *(name for name in (normalisation, calibrated) if name != "none")]
    return "_".join(parts)


def accuracy_of(of: Candidates, normalisation: str, calibrated: str) -> Any:
    """1.0 or 0.0; for batch calibration what it needs of each document, to be put together."""
    lengths = None if normalisation == "none" else of.lengths[normalisation]
    scores = calibration.normalise(of.log_likelihoods, lengths)
    if calibrated == "batch":
        return scores.tolist(), sorted(of.gold)
    if calibrated == "contextual":
        scores = calibration.contextual(scores, calibration.normalise(of.content_free, lengths))
    if calibrated == "pmi":
        assert of.unconditional is not None
        scores = calibration.pmi(scores, calibration.normalise(of.unconditional, lengths))
    return calibration.is_right(scores, of.gold)
