"""Combinations of `fewshot.episodes` with the rest of the recipe that can't work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches

from ds_train.config.compare import split_shots
from ds_train.config.data import SourceConfig
from ds_train.config.fewshot import EpisodesConfig
from ds_train.config.run import RunConfig


def episode_rules(config: RunConfig) -> Iterator[str]:
    """Faults of `fewshot.episodes` with the rest of the recipe."""
    episodes = None if config.fewshot is None else config.fewshot.episodes
    yield from _metrics(config, episodes)
    if episodes is None:
        return
    yield from _other_orders(config)
    yield from _settings(episodes)
    yield from _data(config)
    yield from _held_out(config, episodes)


def _metrics(config: RunConfig, episodes: EpisodesConfig | None) -> Iterator[str]:
    """Metrics of so many demonstrations must be measured."""
    for place, metric in enumerate([] if config.compare is None else config.compare.metrics):
        shots, rest = split_shots(metric)
        measured = [] if episodes is None else episodes.measured_shots
        if shots is None or int(shots) in measured:
            continue
        how = f"it measures {', '.join(map(str, measured))}" if episodes else "it has no episodes"
        yield (
            f'compare.metrics[{place}] = "{metric}": is measured where fewshot.episodes.shots has '
            f"{shots}, and here {how}; add it there, or take {rest}."
        )


def _other_orders(config: RunConfig) -> Iterator[str]:
    for field, given in (("curriculum", config.curriculum), ("data.mixture", config.data.mixture)):
        if given is not None:
            yield (
                f"{field} with fewshot.episodes: episodes draw their queries and demonstrations "
                "by themselves (tasks by fewshot.episodes.temperature); remove one of them."
            )
    if config.fewshot is not None and config.fewshot.losses is not None:
        yield (
            "fewshot.losses with fewshot.episodes: the losses score the candidate answers of one "
            "example, and an episode is a row of several; remove one of them."
        )


def _settings(episodes: EpisodesConfig) -> Iterator[str]:
    if episodes.k:
        return
    for field in ("permute_labels", "loss_on", "order", "label_overlap"):
        default = EpisodesConfig.model_fields[field].default
        if getattr(episodes, field) != default and not (
            field in ("order", "label_overlap") and episodes.measured_shots[-1]
        ):
            value = str(getattr(episodes, field)).lower()
            yield (
                f"fewshot.episodes.{field} = {value} with k = 0: there are no demonstrations that "
                "it could be about; remove it, or take a k of 1 or more."
            )


def _data(config: RunConfig) -> Iterator[str]:
    data = config.data
    if data.over_length in ("truncate", "split"):
        yield (
            f"data.over_length = {data.over_length} with fewshot.episodes: it makes examples "
            "without their answer; take drop or error."
        )
    if data.loss_on == "all":
        yield (
            "data.loss_on = all with fewshot.episodes: no answer could be told from its input; "
            "fewshot.episodes.loss_on says which answers are learned."
        )
    for number, source in enumerate(data.train):
        if source.format == "text" or source.loss_on == "all":
            what = "format = text" if source.format == "text" else "loss_on = all"
            yield (
                f"data.train[{number}].{what} with fewshot.episodes: no answer could be told from "
                "its input; remove the source, or the setting."
            )


def _held_out(config: RunConfig, episodes: EpisodesConfig) -> Iterator[str]:
    train, validation = config.data.train, config.data.validation.sources
    field = "fewshot.episodes.held_out"
    names = Counter(source.shown_name for source in [*train, *validation])
    for name in dict.fromkeys(episodes.held_out):
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {_listed(list(names))}."
            yield f'{field}: no source is called "{name}"; {hint}'
        elif names[name] > 1:
            yield (
                f'{field}: {names[name]} sources are called "{name}", so that the task would be '
                "trained on and held out; give each source a name of its own (name:)."
            )
    held = [one for one in [*train, *validation] if one.shown_name in episodes.held_out]
    kept = [one for one in train if one.shown_name not in episodes.held_out]
    yield from _same_files(held, kept)
    if not kept:
        yield f"{field}: names all of data.train, so that nothing would be left to train on."


def _same_files(held: list[SourceConfig], kept: list[SourceConfig]) -> Iterator[str]:
    for one in held:
        for other in kept:
            same = sorted(_files(one) & _files(other))
            if same and (one.subset, one.split) == (other.subset, other.split):
                yield (
                    f"fewshot.episodes.held_out: {one.shown_name} is read from {same[0]}, and so "
                    f"is {other.shown_name}, which is trained on; a held-out task wants data of "
                    "its own."
                )


def _files(source: SourceConfig) -> set[str]:
    return {source.path} if isinstance(source.path, str) else set(source.path)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 12 else shown
