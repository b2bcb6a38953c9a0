"""Names of what goes with an evaluation task: demonstrations, drawing, calibration, normalisation.

The recipe's `evaluate` section and the options of `ds-train evaluate` both read them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

METHODS = ("random", "balanced", "bm25", "knn", "fixed")
CALIBRATIONS = ("none", "contextual", "batch", "pmi")
NORMALISATIONS = ("none", "tokens", "chars", "bytes", "pmi")
DRAWS = ("document", "lm_eval")

_SYNONYMS = {"characters": "chars"}
_OTHER_NAMES = {
    "char": "chars",
    "byte": "bytes",
    "token": "tokens",
    "mutual_info": "pmi",
    "class_balanced": "balanced",
    "nearest": "knn",
    "first_n": "fixed",
    "zhao": "contextual",
    "lm-eval": "lm_eval",
}

Draw = Literal["document", "lm_eval"]


@dataclass(frozen=True)
class Demonstrations:
    """How the demonstrations of a query are chosen."""

    method: str
    """one of METHODS"""
    indices: tuple[int, ...] = ()
    """of `fixed`: which documents, in the order in which they are shown; the first ones if empty"""

    def __str__(self) -> str:
        places = ",".join(map(str, self.indices))
        return f"{self.method}:{places}" if places else self.method


def parse_demonstrations(text: Any) -> Demonstrations:
    """`random`, `balanced`, `bm25`, `knn`, `fixed` or `fixed:3,17,42`; ValueError for the rest."""
    if isinstance(text, Demonstrations):
        return text
    name, colon, rest = str(text).partition(":")
    method = check_name(name.strip().lower(), METHODS, "or fixed:3,17,42")
    if not colon:
        return Demonstrations(method)
    places = [place.strip() for place in rest.split(",")]
    if method != "fixed" or not all(place.isdecimal() for place in places):
        raise ValueError(
            "documents are named with fixed only, by their numbers from 0, e.g. fixed:3,17,42"
        )
    indices = tuple(int(place) for place in places)
    if len(set(indices)) != len(indices):
        raise ValueError("names a document twice; name each once")
    return Demonstrations(method, indices)


def parse_names(value: Any, names: Sequence[str]) -> list[str]:
    """One name or several, as a list without repeats; ValueError with the nearest name."""
    given = value if isinstance(value, list | tuple) else str(value).split(",")
    if not given:
        raise ValueError(f"names nothing; give one of {', '.join(names)}")
    plain = [str(one).strip().lower() for one in given]
    checked = [check_name(_SYNONYMS.get(one, one), names) for one in plain]
    return list(dict.fromkeys(checked))


def check_name(name: str, names: Sequence[str], more: str = "") -> str:
    """The name if it is one of `names`; ValueError says which there are, and the nearest."""
    if name in names:
        return name
    rule = f"must be one of {', '.join(names)}" + (f" {more}" if more else "")
    near = _OTHER_NAMES.get(name)
    if near not in names:
        near = next(iter(get_close_matches(name, names, n=1, cutoff=0.6)), None)
    raise ValueError(f"{rule}. Did you mean {near}?" if near else rule)


def _check_demonstrations(text: str) -> str:
    return str(parse_demonstrations(text))


DemonstrationsText = Annotated[str, AfterValidator(_check_demonstrations)]
"""`random`, `balanced`, `bm25`, `knn`, `fixed` or `fixed:3,17,42`."""

CalibrationNames = Annotated[
    list[str], BeforeValidator(lambda value: parse_names(value, CALIBRATIONS))
]
"""One of none, contextual, batch and pmi, or a list of them."""

NormalisationNames = Annotated[
    list[str], BeforeValidator(lambda value: parse_names(value, NORMALISATIONS))
]
"""One of none, tokens, chars (or characters), bytes and pmi, or a list of them."""
