"""The `curriculum` section: what is hard, and when how much of it may be drawn.

Without the section, or with `order: uniform`, every epoch is shuffled and nothing is held back.
"""

from __future__ import annotations

from difflib import get_close_matches
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PlainValidator, model_validator

from ds_train.config.base import Count, Length, Section, UserPath
from ds_train.units import Duration

MetricName = Literal[
    "length",
    "target_length",
    "rarity",
    "rarity_mean",
    "compression",
    "readability",
    "perplexity",
    "ifd",
    "loss",
]
METRICS = get_args(MetricName)
MODEL_METRICS = ("perplexity", "ifd")
"""Those that are measured under `metric_model`."""

PacingType = Literal["linear", "root", "wu_root", "quad", "exp", "log", "step", "discrete"]
Order = Literal["easy_to_hard", "hard_to_easy", "random_pool", "uniform"]


def _parse_metric(value: Any) -> Any:
    """A metric's name, {column: name}, {python: "pkg.mod:function"}, or a list of these."""
    if isinstance(value, list):
        if not value:
            raise ValueError("[] names no metric; give one, for example length")
        return [_parse_one_metric(one) for one in value]
    return _parse_one_metric(value)


def _parse_one_metric(value: Any) -> Any:
    if isinstance(value, str) and value in METRICS:
        return value
    if isinstance(value, dict) and set(value) == {"column", "levels"}:
        return {**_parse_one_metric({"column": value["column"]}), "levels": _levels(value)}
    if isinstance(value, dict) and len(value) == 1 and (kind := next(iter(value))) in _OWN_METRICS:
        text = value[kind]
        if isinstance(text, str) and text and (kind == "column" or ":" in text):
            return {kind: text}
        raise ValueError(_OWN_METRICS[kind])
    near = get_close_matches(str(value).lower(), METRICS, n=1, cutoff=0.6)
    rule = f'must be one of {", ".join(METRICS)}, {{column: name}} or {{python: "pkg.mod:fn"}}'
    raise ValueError(f"{rule}. Did you mean {near[0]}?" if near else rule)


def _levels(value: dict[str, Any]) -> list[str]:
    """What a column of text holds, from easy to hard."""
    levels = value["levels"]
    is_text = isinstance(levels, list) and all(isinstance(level, str) for level in levels)
    if is_text and len(levels) == len(set(levels)) > 1:
        return levels
    raise ValueError(
        "levels wants the texts of the column from easy to hard, each once, e.g. "
        "{column: level, levels: [elementary, advanced]}"
    )


_OWN_METRICS = {
    "column": "column wants the name of a column with a number, e.g. {column: level}",
    "python": 'python wants "package.module:function", e.g. {python: "my.metrics:difficulty"}',
}

Metric = Annotated[Any, PlainValidator(_parse_metric)]


class PacingConfig(Section):
    """How much of the data may be drawn as the run goes on: from `start` to `end`."""

    type: PacingType = "linear"
    """`linear`, `root` (Platanios), `wu_root`, `quad`, `exp`, `log`, `step` or `discrete`."""

    start: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the data at the first step."""

    end: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the data at end_at; smaller than start for a pool that shrinks."""

    end_at: Length = 0.5
    """Where the curriculum ends: a share of the run, or '2M tokens', '500 steps'."""

    p: Annotated[float, Field(gt=0)] = 2
    """`root`: degree of the root; 2 is the square root."""

    levels: list[Annotated[float, Field(gt=0, le=1)]] = []
    """`discrete`: the shares, one after another; they may fall."""

    at: list[Length] = []
    """`discrete`: where each level but the first begins."""

    @model_validator(mode="after")
    def _levels_fit(self) -> PacingConfig:
        if self.type != "discrete":
            if self.levels or self.at:
                raise ValueError("levels and at are for type: discrete; set it, or remove them")
            if self.p != 2 and self.type != "root":
                raise ValueError(f"p is for type: root, not for {self.type}; remove it")
            return self
        if not self.levels:
            raise ValueError("levels is empty; type: discrete needs some, e.g. [0.3, 0.6, 1.0]")
        if len(self.at) != len(self.levels) - 1:
            raise ValueError(
                "at says where the second of the levels and each one after it begin, so "
                f"{len(self.levels)} levels and {len(self.at)} in at do not fit"
            )
        check_places("at", self.at)
        if 1.0 in self.at:
            raise ValueError("at 1.0 the run ends, so the last of the levels would never be drawn")
        return self


def check_places(name: str, places: list[Any]) -> None:
    """ValueError unless places of the run in one unit rise."""
    for before, after in pairwise(places):
        if _unit(before) != _unit(after):
            raise ValueError(
                f"{name} mixes {_unit(before)} and {_unit(after)} ({before}, {after}); use one"
            )
        if _amount(before) >= _amount(after):
            raise ValueError(f"{name} must rise, and {after} does not come after {before}")


def _unit(place: float | Duration) -> str:
    return place.unit if isinstance(place, Duration) else "shares of the run"


def _amount(place: float | Duration) -> float:
    return place.amount if isinstance(place, Duration) else place


class SeqLenConfig(Section):
    """Rows that grow as the run goes on, beside or instead of an order by difficulty."""

    start: Count
    """Longest row at the first step, in tokens."""

    end: Count | None = None
    """Longest row at end_at; data.max_length when left out."""

    end_at: Length = 0.5
    """Where the last length is reached."""

    step: Count = 8
    """Lengths are multiples of this; the last one is reached exactly."""

    pacing: Literal["linear", "root", "wu_root", "quad", "exp", "log"] = "linear"
    """Shape of the growth."""

    mode: Literal["reshape", "truncate", "window"] = "reshape"
    """`reshape` keeps every token in shorter rows, `truncate` cuts them, `window` limits how far
    attention looks back."""


class CurriculumConfig(Section):
    """An order by difficulty, or one of its controls."""

    metric: Metric = "length"
    """What is hard: a name, `{column: name}` (and `levels: [easy, ..., hard]` where it holds
    text), `{python: "pkg.mod:fn"}`, or several of these."""

    metric_model: UserPath | None = None
    """perplexity and ifd: run, folder or hub name of the model that measures."""

    normalise: Literal["cdf", "value"] = "cdf"
    """A share of the samples, or of the range between the lowest and the highest difficulty."""

    order: Order = "easy_to_hard"
    """`easy_to_hard`, or a control: `hard_to_easy`, `random_pool`, `uniform` (no curriculum)."""

    pacing: PacingConfig = PacingConfig()
    """How the pool grows."""

    then: Literal["uniform", "continue"] = "uniform"
    """After the curriculum: all samples, or its last pool."""

    unit: Literal["tokens", "steps", "samples"] | None = None
    """What the run's progress is measured in; follows from the run's length when left out."""

    cover: bool = False
    """Every sample exactly once an epoch, drawn from what the pool has not yet given."""

    stratify_by: str | None = None
    """`source` or a column: the order holds within each of its values, which stay mixed."""

    window: Count | None = None
    """No pool: sort only within windows of so many samples of the shuffled epoch."""

    seq_len: SeqLenConfig | None = None
    """Rows that grow."""

    refresh_at: list[Annotated[float, Field(gt=0, lt=1)]] = []
    """metric: loss: shares of max_steps after which the model in training scores the samples
    again, to go on by what it finds hard then (self-paced learning)."""

    @property
    def metrics(self) -> list[Any]:
        """The metrics as a list."""
        return self.metric if isinstance(self.metric, list) else [self.metric]

    @model_validator(mode="after")
    def _fits_together(self) -> CurriculumConfig:
        by_model = [metric for metric in self.metrics if metric in MODEL_METRICS]
        if by_model and self.metric_model is None:
            raise ValueError(f"metric {by_model[0]} wants metric_model, the model that measures it")
        if self.metric_model is not None and not by_model:
            raise ValueError("metric_model is for the metrics perplexity and ifd; remove it")
        if self.refresh_at and self.metric != "loss":
            raise ValueError("refresh_at is for metric: loss; other difficulties stay as they are")
        if sorted(set(self.refresh_at)) != self.refresh_at:
            raise ValueError("refresh_at must rise")
        if self.window is not None and self.cover:
            raise ValueError("window shows each sample once an epoch by itself; remove cover")
        return self
