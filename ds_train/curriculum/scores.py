"""The difficulty of every training sample: computed at its first use, opened ever after.

`open_scores` is what a run calls: it makes what needs no model, and opens what `ds-train score` has
made with one. Every rank calls it and gets the same values, since they come from one file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_train.config.curriculum import CurriculumConfig
from ds_train.config.run import RunConfig
from ds_train.curriculum.metrics.combine import mean_rank
from ds_train.curriculum.metrics.rows import find_module, row_difficulty
from ds_train.curriculum.metrics.spec import MetricSpec, metric_specs
from ds_train.curriculum.metrics.texts import UNDEFINED, text_difficulty
from ds_train.curriculum.metrics.tokens import Floats, token_difficulty
from ds_train.curriculum.model_facts import metric_model_facts, start_model_facts
from ds_train.curriculum.score_files import (
    SCORES_VERSION,
    StoredScores,
    checksum,
    one_maker,
    open_stored,
    store,
)
from ds_train.data.divide import PreparedData
from ds_train.data.fingerprint import fingerprint_files, hash_of
from ds_train.data.prepare import store_folder
from ds_train.data.sources import resolve_sources
from ds_train.data.workers import num_cores
from ds_train.errors import ConfigError, DataError
from ds_train.units import format_seconds

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, eq=False)
class DifficultyScores:
    """Difficulty of each sample of `PreparedData.train`; higher is harder."""

    values: NDArray[np.float32]
    """float32 [N], all finite."""
    fingerprint: str
    """Names metric and values: equal on all machines for equal values, and only then."""
    metric: str
    """The metric, or several of them, as the recipe writes them."""


class ScoreBook:
    """The difficulties of one recipe's training samples, each metric under its file's name.

    A labelled example that is rendered in several ways has one difficulty, that of its right answer
    in its first template.
    """

    def __init__(self, config: RunConfig, prepared: PreparedData) -> None:
        self.config, self.prepared = config, prepared.of_examples
        self.curriculum = _curriculum(config)
        self.specs = metric_specs(self.curriculum)
        self.folder = store_folder(config, resolve_sources(config.data)) / "difficulty"

    def name(self, spec: MetricSpec) -> str:
        """Name of a metric's file: a hash of all that it depends on."""
        facts = [SCORES_VERSION, self.prepared.fingerprint, str(spec)]
        return hash_of([*facts, self._facts(spec)])

    def open(self, spec: MetricSpec, say: Say) -> StoredScores | None:
        """A metric that was computed before, or None."""
        return open_stored(self.folder, self.name(spec), self.prepared.train.num_samples, say)

    def make(self, spec: MetricSpec, say: Say) -> StoredScores:
        """A metric that needs no model: computed now, unless that was done before.

        Raises:
            ConfigError, DataError: it is not defined for a row, which is named.
        """
        with one_maker(self.folder, self.name(spec)):
            if (found := self.open(spec, say)) is not None:
                return found
            began = time.monotonic()
            values = self._compute(spec)
            return self.keep(spec, values, time.monotonic() - began, say)

    def keep(
        self, spec: MetricSpec, values: Floats, seconds: float, say: Say, **facts: Any
    ) -> StoredScores:
        """Store the values of a metric, float64 [N]; DataError where one is not finite."""
        self.check_finite(spec, values)
        facts |= {"metric": str(spec), "seconds": round(seconds, 6)}
        num = f"{len(values):,} {'sample' if len(values) == 1 else 'samples'}"
        say(f"difficulty: {spec} of {num} in {format_seconds(seconds)}")
        return store(self.folder, self.name(spec), values.astype(np.float32), facts)

    def combined(self, parts: list[StoredScores], say: Say) -> NDArray[np.float32]:
        """float32 [N]: the values of the only metric, or the mean rank of several."""
        if len(parts) == 1:
            return parts[0].values
        facts = [SCORES_VERSION, "mean rank", [part.facts["blake2b"] for part in parts]]
        name, metric = hash_of(facts), self.metric
        num_samples = self.prepared.train.num_samples
        with one_maker(self.folder, name):
            found = open_stored(self.folder, name, num_samples, say)
            if found is None:
                values = mean_rank([part.values for part in parts]).astype(np.float32)
                found = store(self.folder, name, values, {"metric": metric})
        return found.values

    @property
    def metric(self) -> str:
        """The metrics as one writes them."""
        names = [str(spec) for spec in self.specs]
        return names[0] if len(names) == 1 else f"[{', '.join(names)}]"

    def finish(self, parts: list[StoredScores], say: Say) -> DifficultyScores:
        """What a run takes its order from."""
        values = self.combined(parts, say)
        return DifficultyScores(values, hash_of([self.metric, checksum(values)]), self.metric)

    def _facts(self, spec: MetricSpec) -> Any:
        if spec.kind == "python":
            file = find_module(spec)
            return None if file is None else fingerprint_files([file])
        if spec.kind == "loss":
            return start_model_facts(self.config)
        if spec.needs_model:
            assert self.curriculum.metric_model is not None
            return metric_model_facts(self.curriculum.metric_model)
        return None

    def _compute(self, spec: MetricSpec) -> Floats:
        data, train = self.config.data, self.prepared.train
        num_workers = data.num_workers or num_cores()
        if spec.argument:
            return row_difficulty(spec, data, train, num_workers)
        if spec.kind in UNDEFINED:
            return text_difficulty(spec.kind, train, self.config.model, num_workers)
        return token_difficulty(spec.kind, train, num_workers)

    def check_finite(self, spec: MetricSpec, values: Floats) -> None:
        """DataError that names the first sample whose value can't be ordered."""
        with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, and is found
            bad = np.flatnonzero(~np.isfinite(values.astype(np.float32)))
        if not len(bad):
            return
        first, train = int(bad[0]), self.prepared.train
        source = self.prepared.source_names[train.sources[first]]
        row = f"{source}, row {train.ordinals[first] + 1:,}"
        others = f" ({len(bad) - 1:,} more samples are like that)" if len(bad) > 1 else ""
        if spec.kind in UNDEFINED:
            raise DataError(
                f"{spec.where}: {row} {UNDEFINED[spec.kind]}{others}; remove it, or choose another "
                "metric."
            )
        raise DataError(
            f"{spec.where}: {row} has the difficulty {values[first]:g}{others}; only finite "
            "numbers up to 3.4e38 can be ordered."
        )


def open_scores(config: RunConfig, prepared: PreparedData, say: Say = print) -> DifficultyScores:
    """Difficulty of every training sample by `curriculum.metric`, computed now where that is cheap.

    Raises:
        ConfigError: the recipe has no curriculum, or the metric can't be computed; DataError: a
        row without a difficulty, or a metric that needs a model and was not made before.
    """
    book = ScoreBook(config, prepared)
    parts = []
    for spec in book.specs:
        found = book.open(spec, say)
        if found is None and spec.needs_model:
            raise DataError(
                f"{spec.where}: the samples have not been scored with this model and this data; "
                "run `ds-train score` with the same recipe first."
            )
        parts.append(found or book.make(spec, say))
    return book.finish(parts, say)


def _curriculum(config: RunConfig) -> CurriculumConfig:
    if config.curriculum is None:
        raise ConfigError(
            "curriculum is missing, so nothing says what is hard; add the section, or write e.g. "
            "curriculum.metric=length behind the recipe."
        )
    return config.curriculum
