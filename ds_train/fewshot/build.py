"""From a recipe with `fewshot.episodes` to its stream of rows, and to those it is evaluated on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ds_train.config.fewshot import EpisodesConfig
from ds_train.config.run import RunConfig
from ds_train.data.divide import PreparedData
from ds_train.data.encode import TextEncoder, open_tokenizer
from ds_train.data.row_plan import RowPlan
from ds_train.data.store import TokenStore
from ds_train.errors import DataError
from ds_train.fewshot.episodes import EpisodeBlocks, Episodes, EvaluationEpisodes
from ds_train.fewshot.layout import Joints

Say = Callable[[str], object]
_LOOKED_AT = 64
"""Blocks whose demonstrations are counted, at most: some 65,000 episodes (500,000 packed)."""


def episodes_section(config: RunConfig) -> EpisodesConfig | None:
    """`fewshot.episodes`, where the recipe has it."""
    return None if config.fewshot is None else config.fewshot.episodes


def build_episodes(
    config: RunConfig, prepared: PreparedData, store: TokenStore, most: int
) -> Episodes:
    """The episodes of one part of the data, with `most` demonstrations at most.

    Raises:
        DataError: the data has no such episodes.
    """
    section = episodes_section(config)
    assert section is not None
    _check_formats(prepared, store)
    joints = Joints.of(TextEncoder.of(open_tokenizer(config.model)), section)
    names, length = prepared.source_names, config.data.max_length
    return Episodes(store, section, joints, length, names, most)


def evaluation_episodes(
    config: RunConfig, prepared: PreparedData, store: TokenStore
) -> dict[int, EvaluationEpisodes]:
    """Number of demonstrations -> episodes of one part of the data, for all of `shots`."""
    section = episodes_section(config)
    assert section is not None
    shots = section.measured_shots
    episodes = build_episodes(config, prepared, store, shots[-1])
    return {num: episodes.for_evaluation(num) for num in shots}


def _check_formats(prepared: PreparedData, store: TokenStore) -> None:
    present = set(store.sources.tolist())
    faults = []
    for index, facts in enumerate(prepared.audit["sources"]):
        if index not in present:
            continue
        if facts["format"] == "text" or facts["loss_on"] == "all":
            what = "format text" if facts["format"] == "text" else "loss_on = all"
            faults.append(
                f"fewshot.episodes: {facts['field']} ({facts['name']}) has {what}, so that no "
                "answer can be told from its input; remove it, or give another format or loss_on."
            )
        if (policy := facts["over_length"]) in ("truncate", "split"):
            faults.append(
                f"fewshot.episodes: {facts['field']} ({facts['name']}) has data.over_length = "
                f"{policy}, which makes examples without their answer; take drop or error."
            )
    if faults:
        raise DataError(faults)


def build_episode_plan(config: RunConfig, prepared: PreparedData, say: Say) -> RowPlan:
    """The endless stream of episodes, the same on every rank.

    Args:
        say: is told what an epoch holds, and which demonstrations do not fit.

    Raises:
        DataError: the data has no such episodes, or none of the demonstrations fits.
    """
    section, store = episodes_section(config), prepared.train
    assert section is not None
    if store.num_samples == 0:
        raise DataError("data.train: no sample is left to train on; see the audit for why.")
    episodes = build_episodes(config, prepared, store, section.k)
    blocks = EpisodeBlocks(episodes, config.data, config.train.seed, prepared.source_weights)
    plan = RowPlan(blocks)
    facts = epoch_facts(plan)
    if section.k and not facts["shown"]:
        raise DataError(
            f"data.max_length = {config.data.max_length:,}: in none of the episodes is there room "
            "for a demonstration; raise it."
        )
    say(describe_epoch(section, facts, config.data.max_length))
    return plan


def epoch_facts(plan: RowPlan) -> dict[str, Any]:
    """What the first epoch (or its first blocks) holds: episodes, tasks, demonstrations."""
    blocks = plan.blocks
    assert isinstance(blocks, EpisodeBlocks)
    number = episodes = shown = 0
    while episodes < blocks.first(1) and number < _LOOKED_AT:
        rows = plan.block(number)
        episodes += int(rows.samples_before[-1])
        shown += blocks.num_shown(number)
        number += 1
    return {
        "episodes": episodes,
        "tasks": len(blocks.episodes.tasks.tasks),
        "demonstrations": episodes * blocks.episodes.config.k,
        "shown": shown,
        "whole_epoch": episodes >= blocks.first(1),
    }


def describe_epoch(section: EpisodesConfig, facts: dict[str, Any], max_length: int) -> str:
    """The facts for people."""
    tasks = f"{facts['tasks']:,} {'task' if facts['tasks'] == 1 else 'tasks'}"
    of = "an epoch" if facts["whole_epoch"] else "the first blocks"
    text = f"episodes: {facts['episodes']:,} in {of}, {section.k} demonstrations each, {tasks}"
    if section.k == 0:
        return f"episodes: {facts['episodes']:,} in {of}, without demonstrations, {tasks}"
    missing = facts["demonstrations"] - facts["shown"]
    if not missing:
        return text
    return (
        f"{text}; {missing:,} of {facts['demonstrations']:,} demonstrations are left out, as they "
        f"do not fit into data.max_length = {max_length:,}"
    )
