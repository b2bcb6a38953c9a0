"""Combinations of `fewshot.losses` and of rank classification with the recipe that can't work."""

from __future__ import annotations

from collections.abc import Iterator

from ds_train.config.compare import RANK_METRICS, split_metric
from ds_train.config.fewshot import LossesConfig
from ds_train.config.run import RunConfig


def losses_rules(config: RunConfig) -> Iterator[str]:
    """Faults of the losses over candidate answers, and of their evaluation."""
    losses = None if config.fewshot is None else config.fewshot.losses
    if losses is not None:
        yield from _rows(config)
        yield from _settings(losses)
    if losses is not None or config.evaluate.rank_classification:
        field = "fewshot.losses" if losses is not None else "evaluate.rank_classification"
        yield from _answers(config, field)
    if config.evaluate.rank_classification and _has_episodes(config):
        yield (
            "evaluate.rank_classification with fewshot.episodes: answers would be ranked without "
            "the demonstrations that the run trains with; remove it (fewshot.episodes.shots says "
            "with how many the loss is measured)."
        )
    yield from _metrics(config)


def _has_episodes(config: RunConfig) -> bool:
    return config.fewshot is not None and config.fewshot.episodes is not None


def _rows(config: RunConfig) -> Iterator[str]:
    """What else wants to make the rows."""
    if config.data.packing:
        yield (
            "data.packing = true with fewshot.losses: each candidate answer is scored in a line of "
            "its own, and a row is an example with all of its candidates; set data.packing: false."
        )
    for field, given in (("curriculum", config.curriculum), ("data.mixture", config.data.mixture)):
        if given is not None:
            yield (
                f"{field} with fewshot.losses: it draws samples, and a step of these losses is "
                "made of examples with their candidates; remove one of them (a source's weight "
                "says how often its examples come)."
            )


def _settings(losses: LossesConfig) -> Iterator[str]:
    if losses.unlikelihood == losses.length_normalised == 0 and losses.max_negatives is not None:
        yield (
            f"fewshot.losses.max_negatives = {losses.max_negatives}: unlikelihood and "
            "length_normalised are 0, so that no wrong answer is scored; remove it, or raise one "
            "of them."
        )
    if losses.language_modelling == 0 and losses.lm_mean == "token":
        yield (
            "fewshot.losses.lm_mean = token: language_modelling is 0, so that nothing is averaged; "
            "remove it, or raise language_modelling."
        )


def _answers(config: RunConfig, field: str) -> Iterator[str]:
    """Scores are those of the answers alone, whole."""
    data = config.data
    if data.over_length in ("truncate", "split"):
        yield (
            f"data.over_length = {data.over_length} with {field}: an answer that is cut off can't "
            "be compared with whole ones; take drop or error."
        )
    places = [(f"data.train[{number}]", one) for number, one in enumerate(data.train)]
    sources = data.validation.sources
    places += [(f"data.validation.sources[{number}]", one) for number, one in enumerate(sources)]
    if data.loss_on == "all":
        yield _all_tokens("data.loss_on", field)
    for place, source in places:
        if source.loss_on == "all" and source.format != "text":
            yield _all_tokens(f"{place}.loss_on", field)


def _all_tokens(place: str, field: str) -> str:
    return (
        f"{place} = all with {field}: the question's tokens would count as part of every answer; "
        "set completion."
    )


def _metrics(config: RunConfig) -> Iterator[str]:
    if config.compare is None or config.evaluate.rank_classification:
        return
    for place, metric in enumerate(config.compare.metrics):
        if split_metric(metric)[1] in RANK_METRICS:
            yield (
                f'compare.metrics[{place}] = "{metric}": is measured where wrong answers are '
                "scored too; set evaluate.rank_classification: true."
            )
