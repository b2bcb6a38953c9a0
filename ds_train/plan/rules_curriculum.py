"""Combinations of a curriculum or a mixture with the rest of the recipe that can't work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ds_train.config.curriculum import CurriculumConfig
from ds_train.config.mixture import MixtureConfig
from ds_train.config.run import RunConfig
from ds_train.curriculum.pacing import RunLength, refresh_steps
from ds_train.errors import ConfigError
from ds_train.units import Duration


def curriculum_rules(config: RunConfig) -> Iterator[str]:
    """Faults of `curriculum` and `data.mixture` with the rest of the recipe."""
    curriculum, mixture = config.curriculum, config.data.mixture
    if curriculum is not None:
        yield from _unit(config)
        yield from _lengths(config, curriculum)
        if curriculum.order != "uniform":
            yield from _together(curriculum, mixture)
            if curriculum.refresh_at:
                yield from _refreshes(config, curriculum)
    if mixture is not None:
        yield from _names(config, mixture)
        untils = [stage.until for stage in mixture.stages]
        for number, until in enumerate(untils):
            yield from after_the_end(config, f"data.mixture.stages[{number}].until", until)
    if mixture is not None or (curriculum is not None and curriculum.order != "uniform"):
        yield from _data(config, "curriculum" if mixture is None else "data.mixture")


def _unit(config: RunConfig) -> Iterator[str]:
    try:
        RunLength.of(config, 1, 1)
    except ConfigError as error:
        yield from error.faults


def _lengths(config: RunConfig, curriculum: CurriculumConfig) -> Iterator[str]:
    pacing = curriculum.pacing
    if pacing.type != "discrete":
        yield from after_the_end(config, "curriculum.pacing.end_at", pacing.end_at)
    for number, place in enumerate(pacing.at):
        yield from after_the_end(config, f"curriculum.pacing.at[{number}]", place)


def after_the_end(config: RunConfig, field: str, place: float | Duration | None) -> Iterator[str]:
    """Fault of a place that comes after what limits the run."""
    train = config.train
    limits = {
        "steps": ("max_steps", train.max_steps),
        "tokens": ("max_tokens", train.max_tokens),
        "epochs": ("num_train_epochs", train.num_train_epochs),
    }
    if not isinstance(place, Duration):
        return
    name, limit = limits[place.unit]
    if limit is not None and place.amount > limit:
        yield (
            f'{field} = "{place}": lies after the end of the run, which train.{name} = {limit:,} '
            "sets; make one of them fit."
        )


def _together(curriculum: CurriculumConfig, mixture: MixtureConfig | None) -> Iterator[str]:
    pacing = curriculum.pacing
    levels = pacing.levels or [pacing.start, pacing.end]
    if curriculum.cover and levels != sorted(levels):
        yield (
            "curriculum.cover = true with a pool that shrinks: what leaves the pool could not be "
            "shown once an epoch; set cover: false, or a pacing that rises."
        )
    if mixture is None:
        return
    if curriculum.cover:
        yield (
            "curriculum.cover = true with data.mixture: the mixture decides how often each "
            "source is passed; set cover: false."
        )
    if curriculum.window is not None:
        yield (
            "curriculum.window with data.mixture: windows are those of a shuffled epoch, which a "
            "mixture does not have; remove one of them."
        )
    if curriculum.stratify_by == "source":
        yield (
            "curriculum.stratify_by = source with data.mixture: the pool of a mixture is each "
            "source's own already; remove stratify_by."
        )


def _refreshes(config: RunConfig, curriculum: CurriculumConfig) -> Iterator[str]:
    """Faults of scoring again during the run: what has to be known before, and would not be."""
    field, train, mixture = "curriculum.refresh_at", config.train, config.data.mixture
    if train.max_steps is None:
        limit = "max_tokens" if train.max_tokens is not None else "num_train_epochs"
        yield (
            f"{field} = {curriculum.refresh_at}: the samples drawn after that are not known "
            f"before, so that under train.{limit} nobody could tell how many steps the run has; "
            "give train.max_steps instead."
        )
        return
    steps = (0, *refresh_steps(config), train.max_steps)
    if len(set(steps)) < len(steps):
        places = ", ".join(f"{step:,}" for step in steps[1:-1])
        yield (
            f"{field} = {curriculum.refresh_at}: of {train.max_steps:,} steps these are the ones "
            f"after {places}, and each has to be another one, before the last; give shares that "
            "lie further apart, or more steps."
        )
    if isinstance(train.warmup_steps, Duration) and train.warmup_steps.unit != "steps":
        yield (
            f'{field} with train.warmup_steps = "{train.warmup_steps}": how many steps that is may '
            "depend on samples that are not known before; give it in steps, or as a share."
        )
    if curriculum.cover:
        yield (
            f"{field} with curriculum.cover = true: an epoch can't be covered in two orders; set "
            "cover: false."
        )
    if mixture is not None and mixture.max_epochs and mixture.on_exhausted != "repeat":
        yield (
            f"{field} with data.mixture.max_epochs: whether a source runs out is not known before "
            "the run; set on_exhausted: repeat, or remove max_epochs."
        )


def _names(config: RunConfig, mixture: MixtureConfig) -> Iterator[str]:
    names = [source.shown_name for source in config.data.train]
    for name, count in Counter(names).items():
        if count > 1:
            yield f"data.mixture: {count} sources are called {name}; give each a name of its own."
    given = [(f"data.mixture.stages[{i}].weights", s.weights) for i, s in enumerate(mixture.stages)]
    given.append(("data.mixture.max_epochs", mixture.max_epochs))
    for field, by_name in given:
        for name in sorted(by_name.keys() - set(names)):
            yield (
                f"{field}.{name}: there is no such source; data.train has {', '.join(names)} "
                "(a source's name is its name, or the last part of its path)."
            )
    if not mixture.stages:
        return
    drawn = {name for stage in mixture.stages for name, weight in stage.weights.items() if weight}
    for name in names:
        if name not in drawn:
            yield (
                f"data.mixture: no stage gives {name} a weight, so nothing of it would be drawn; "
                "remove the source, or give it a weight."
            )


def _data(config: RunConfig, what: str) -> Iterator[str]:
    if not config.data.shuffle:
        yield (
            f"data.shuffle = false with {what}: it draws at random within what it lets in; remove "
            "one of them."
        )
    for number, source in enumerate(config.data.train):
        if source.weight != 1:
            yield (
                f"data.train[{number}].weight = {source.weight:g} with {what}: passes in an epoch "
                "have no meaning there; give shares of the tokens in data.mixture instead, e.g. "
                f"stages: [{{weights: {{{source.shown_name}: 0.5, ...}}}}]."
            )
