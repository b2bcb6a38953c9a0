"""`ds-train score`: the difficulty of every training sample, computed and stored, and shown.

What needs a model runs as several processes where the recipe has several (`cluster`, or a GPU
each), every one with the whole model and a share of the samples; on one machine only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ds_train.config.files import check_files
from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.curriculum.metrics.spec import MetricSpec
from ds_train.curriculum.metrics.texts import TextDecoder
from ds_train.curriculum.scores import ScoreBook
from ds_train.data.encode import open_tokenizer
from ds_train.data.prepare import open_data, prepare_data
from ds_train.engine.ranks import Ranks
from ds_train.errors import ConfigError, RunFailed
from ds_train.launch.command import launcher_command, launcher_environment, master_port
from ds_train.launch.guard import stop_with_launcher
from ds_train.launch.process import run_launcher
from ds_train.launch.world import World, find_world
from ds_train.score.model import score_with_model
from ds_train.score.summary import format_summaries, summarise, text_bytes_per_token

Say = Callable[[str], Any]


def _say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def score_command(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    as_json: bool = False,
    say: Say = _say_on_stderr,
) -> int:
    """Make what is not there yet, then print a table (or JSON) on stdout; returns the exit code.

    Raises:
        ConfigError, DataError, ModelError: the metric can't be computed; RunFailed: a process died.
    """
    config = _load(recipe, overrides)
    prepared = prepare_data(config, say=say)
    book = ScoreBook(config, prepared)
    prepared = book.prepared
    for spec in [spec for spec in book.specs if not spec.needs_model]:
        if book.open(spec, say) is None:
            book.make(spec, say)
    missing = [spec for spec in book.specs if spec.needs_model and book.open(spec, say) is None]
    if missing and (code := _run_models(book, missing, recipe, overrides, say)):
        return code
    parts = [found for spec in book.specs if (found := book.open(spec, say)) is not None]
    if len(parts) < len(book.specs):
        raise RunFailed(f"the difficulties in {book.folder} vanished while they were made.")
    book.finish(parts, say)
    decoder = TextDecoder.of(open_tokenizer(config.model))
    bytes_per_token = text_bytes_per_token(prepared.train, decoder)
    summaries = [summarise(part, prepared, decoder, bytes_per_token) for part in parts]
    print(json.dumps(summaries, indent=1) if as_json else format_summaries(summaries))
    return 0


def score_as_rank(recipe: str, overrides: Sequence[str]) -> int:
    """What each of several processes does: score with the models, store, and say nothing else."""
    stop_with_launcher()
    # 2 s to import, and only ranks need it
    from ds_train.engine.process_group import start_process_group, stop_process_group

    config = _load(recipe, overrides)
    ranks = Ranks.from_environment()
    start_process_group(ranks)
    try:
        book = ScoreBook(config, open_data(config))
        say = _say_on_stderr if ranks.is_main else _silent
        for spec in _missing(book, ranks):
            score_with_model(book, spec, ranks, say)
    finally:
        stop_process_group()
    return 0


def _missing(book: ScoreBook, ranks: Ranks) -> list[MetricSpec]:
    """Metrics to compute, as the first rank sees them: all ranks must compute the same."""
    missing = [spec for spec in book.specs if spec.needs_model and not book.open(spec, _silent)]
    names = ranks.texts(" ".join(spec.kind for spec in missing))[0].split()
    return [spec for spec in book.specs if spec.kind in names]


def _silent(text: str) -> None:
    """The first rank speaks for all."""


def _load(recipe: str, overrides: Sequence[str]) -> RunConfig:
    config = load_recipe(recipe, overrides)
    if faults := check_files(config):
        raise ConfigError(faults)
    return config


def _run_models(
    book: ScoreBook, missing: list[MetricSpec], recipe: str, overrides: Sequence[str], say: Say
) -> int:
    """Score with models, here or in processes of their own; returns an exit code."""
    world = _world_here(book.config)
    if world.world_size == 1:
        for spec in missing:
            score_with_model(book, spec, Ranks(0, 0, 1), say)
        return 0
    command = launcher_command(book.config, recipe, overrides, world=world, action="score")
    say(f"scoring in {world.world_size} processes")
    return run_launcher(command, launcher_environment(world), port=master_port(command), say=say)


def _world_here(config: RunConfig) -> World:
    """The processes of this machine; other hosts would have to see the same folders."""
    world = find_world(config.cluster)
    if world.is_local:
        return world
    host = next(iter(world.slots))
    return replace(world, slots={"localhost": world.slots[host]}, hostfile=None)
