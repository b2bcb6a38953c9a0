"""Which difficulty a recipe asks for: `curriculum.metric`, as a list of named parts.

Higher always means harder. What a metric measures stands in the file that computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ds_train.config.curriculum import MODEL_METRICS, CurriculumConfig
from ds_train.errors import ConfigError


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric of the recipe."""

    kind: str
    """A name of config.curriculum.METRICS, or `column` or `python`."""
    argument: str = ""
    """The column, or the function as `package.module:function`."""
    levels: tuple[str, ...] = ()
    """Texts that the column holds, from easy to hard; they become 0, 1, 2, ..."""

    def __str__(self) -> str:
        if not self.argument:
            return self.kind
        levels = f", levels: [{', '.join(self.levels)}]" if self.levels else ""
        return f"{{{self.kind}: {self.argument}{levels}}}"

    @property
    def needs_model(self) -> bool:
        """Whether a model computes it, which only `ds-train score` does."""
        return self.kind in (*MODEL_METRICS, "loss")

    @property
    def where(self) -> str:
        """Beginning of a message about it."""
        return f"curriculum.metric = {self}"


def metric_specs(curriculum: CurriculumConfig) -> tuple[MetricSpec, ...]:
    """The metrics of a recipe, each once.

    Raises:
        ConfigError: one is named twice.
    """
    specs = tuple(_spec(part) for part in curriculum.metrics)
    for spec in specs:
        if specs.count(spec) > 1:
            raise ConfigError(f"curriculum.metric names {spec} twice; remove one of them.")
    return specs


def _spec(part: Any) -> MetricSpec:
    if isinstance(part, str):
        return MetricSpec(part)
    if "python" in part:
        return MetricSpec("python", part["python"])
    return MetricSpec("column", part["column"], tuple(part.get("levels", ())))
