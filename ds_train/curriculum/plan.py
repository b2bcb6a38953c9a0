"""The one way from a recipe to its stream of rows, with or without a curriculum or a mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ds_train.config.curriculum import CurriculumConfig
from ds_train.config.run import RunConfig
from ds_train.curriculum.blocks import DrawnBlocks
from ds_train.curriculum.draws import CoverDraws, Draws, PoolDraws, WindowDraws
from ds_train.curriculum.mixture import MixtureDraws, Shares, SourceFacts
from ds_train.curriculum.pacing import RunLength, competence, refresh_steps
from ds_train.curriculum.pool import Floats, Pool, stratified
from ds_train.curriculum.renderings import Renderings
from ds_train.curriculum.scores import DifficultyScores, open_scores
from ds_train.curriculum.segments import Segments
from ds_train.curriculum.seq_len import EpochDraws, Growing, epoch_size
from ds_train.curriculum.strata import find_strata
from ds_train.data.divide import PreparedData
from ds_train.data.epochs import Totals
from ds_train.data.order import StepPlan
from ds_train.data.quarantine import Quarantine
from ds_train.data.row_plan import RowPlan
from ds_train.data.store import TokenStore
from ds_train.errors import DataError
from ds_train.fewshot.build import build_episode_plan, episodes_section
from ds_train.fewshot.candidates import build_candidate_plan, losses_section

Say = Callable[[str], object]


def _silent(text: str) -> None:
    """Says nothing."""


def ordering(config: RunConfig) -> CurriculumConfig | None:
    """The curriculum, where it changes the order of rows."""
    curriculum = config.curriculum
    return None if curriculum is None or curriculum.order == "uniform" else curriculum


def find_scores(
    config: RunConfig, prepared: PreparedData, say: Say = _silent
) -> DifficultyScores | None:
    """Difficulties of a recipe with a curriculum (`order: uniform` reports by them too)."""
    return None if config.curriculum is None else open_scores(config, prepared, say)


def build_step_plan(
    config: RunConfig,
    prepared: PreparedData,
    scores: DifficultyScores | None,
    global_batch_size: int,
    say: Say = _silent,
) -> StepPlan:
    """Rows of every step of a run, without those in the quarantine of its folder. Raises what
    `build_row_plan` does, and where a mixture's max_epochs make an end to the data before the run
    ends."""
    rows = build_row_plan(config, prepared, scores, global_batch_size, say)
    quarantine = Quarantine.of_run(config.output_dir, prepared.fingerprint)
    plan = StepPlan(rows, global_batch_size, config.train.num_train_epochs, quarantine)
    mixture = config.data.mixture
    if mixture is not None and mixture.max_epochs and mixture.on_exhausted != "repeat":
        plan.tokens_before(plan.total_steps(config.train))  # fail now, not in the middle
    return plan


def build_row_plan(
    config: RunConfig,
    prepared: PreparedData,
    scores: DifficultyScores | None,
    global_batch_size: int,
    say: Say = _silent,
) -> RowPlan:
    """The endless stream of rows of a run, the same on every rank.

    Args:
        scores: difficulty of each sample (of each labelled example, where these have several
            renderings); needed where the curriculum orders samples.
        say: is told of a first pool that is raised to one global batch.

    Raises:
        DataError: there is no data, or none of the episodes that are asked for; ConfigError: the
        run's length is in another unit than curriculum.unit.
    """
    if episodes_section(config) is not None:
        return build_episode_plan(config, prepared, say)
    store = prepared.train
    grows = config.curriculum is not None and config.curriculum.seq_len is not None
    if ordering(config) is None and config.data.mixture is None and not grows:
        if (losses := losses_section(config)) is not None:
            return build_candidate_plan(config, losses, prepared, say)
        return RowPlan.uniform(store, config.data, config.train.seed, prepared.source_weights)
    if store.num_samples == 0:
        raise DataError("data.train: no sample is left to train on; see the audit for why.")
    return RowPlan(_drawn_blocks(config, prepared, scores, global_batch_size, say))


def _drawn_blocks(
    config: RunConfig,
    prepared: PreparedData,
    scores: DifficultyScores | None,
    global_batch_size: int,
    say: Say,
) -> DrawnBlocks:
    """The blocks of a run with a curriculum, a mixture, or rows that grow."""
    curriculum, mixture, seed = ordering(config), config.data.mixture, config.train.seed
    seq_len = None if config.curriculum is None else config.curriculum.seq_len
    whole, prepared = prepared.train, prepared.of_examples
    store, weights = prepared.train, prepared.source_weights
    drawn = curriculum is not None or mixture is not None
    num_samples = store.num_samples if drawn else epoch_size(store, weights)
    length = RunLength.of(config, global_batch_size, num_samples)
    make = partial(_values_and_pools, config, prepared, length, say)
    segments = Segments(make, scores, refresh_steps(config), global_batch_size)
    shares = None
    renderings = Renderings(whole, seed)
    draws: Draws = EpochDraws(store, weights, seed, shuffle=config.data.shuffle)
    if mixture is not None:
        facts = _source_facts(prepared, renderings.lengths)
        shares = Shares(mixture, facts, length)
        draws = MixtureDraws(mixture, renderings.lengths, facts, shares, seed)
    elif curriculum is not None:
        draws = _draws(curriculum, length, segments, seed)
    growing = None
    if seq_len is not None:
        in_order = curriculum is not None and curriculum.window is not None
        growing = Growing(whole, config.data, seq_len, length, seed, keep_order=in_order)
    return DrawnBlocks(
        store, config.data, curriculum, length, segments, draws, shares, growing, renderings
    )


def _values_and_pools(
    config: RunConfig,
    prepared: PreparedData,
    length: RunLength,
    say: Say,
    scores: DifficultyScores | None,
) -> tuple[Floats | None, list[Pool]]:
    """What windows are sorted by [N], where there are windows, and the pool of each group."""
    store, seed, curriculum = prepared.train, config.train.seed, ordering(config)
    values = None if curriculum is None else _ordered_by(config, curriculum, prepared, scores, say)
    if config.data.mixture is None:
        pools = [Pool(None, store.num_samples, curriculum, values, seed)]
    else:
        pools = []
        for index in np.unique(store.sources).tolist():
            own, name = _members(store, index), prepared.source_names[index]
            of_own = None if values is None else values[own]
            pools.append(Pool(own, len(own), curriculum, of_own, seed, name))
    if curriculum is not None and curriculum.window is None:
        _raise_small_pools(config, curriculum, store, pools, length, say)
    in_windows = curriculum is not None and curriculum.window is not None
    return values if in_windows else None, pools  # pools have their order: one array is enough


def _ordered_by(
    config: RunConfig,
    curriculum: CurriculumConfig,
    prepared: PreparedData,
    scores: DifficultyScores | None,
    say: Say,
) -> Floats:
    if scores is None or len(scores.values) != prepared.train.num_samples:
        raise ValueError("a curriculum orders samples by their difficulty, and none is given")
    if curriculum.stratify_by is None:
        return scores.values
    strata = find_strata(config, prepared, curriculum.stratify_by, say)
    return stratified(scores.values, strata, config.train.seed)


def _draws(curriculum: CurriculumConfig, length: RunLength, segments: Segments, seed: int) -> Draws:
    if curriculum.window is not None:
        return WindowDraws(curriculum, length, segments, seed)
    return CoverDraws(segments.first.pools[0], seed) if curriculum.cover else PoolDraws(seed)


def _source_facts(
    prepared: PreparedData, lengths: NDArray[np.integer | np.floating]
) -> list[SourceFacts]:
    """The training sources of a mixture; lengths: [N] in tokens."""
    store, facts = prepared.train, []
    for index in np.unique(store.sources).tolist():
        here = store.sources == index
        num_tokens = round(float(lengths.sum(dtype=np.float64, where=here)))
        num_samples = int(np.count_nonzero(here))
        facts.append(SourceFacts(prepared.source_names[index], num_tokens, num_samples))
    return facts


def _members(store: TokenStore, source: int) -> NDArray[np.uint32]:
    """Samples of one source, ascending."""
    step = 1 << 18  # stretches: the indices that numpy finds have 8 bytes
    parts = [
        (start + np.flatnonzero(store.sources[start : start + step] == source)).astype(np.uint32)
        for start in range(0, store.num_samples, step)
    ]
    return np.concatenate(parts)


def _raise_small_pools(
    config: RunConfig,
    curriculum: CurriculumConfig,
    store: TokenStore,
    pools: Sequence[Pool],
    length: RunLength,
    say: Say,
) -> None:
    """A pool holds one global batch at least: with less, a step would repeat samples."""
    pacing = curriculum.pacing
    lowest = min([*pacing.levels, competence(curriculum, length, Totals()), pacing.end])
    for pool in pools:
        pool.minimum = _batch_samples(config, store, pool, length.global_batch_size)
        asked, least = pool.asked_size(lowest), pool.size(lowest)
        if asked < least:
            say(
                f"curriculum: the smallest pool ({lowest:g}) would hold {asked:,} of "
                f"{pool.num_samples:,} samples, less than one global batch; raised to {least:,}"
            )


def _batch_samples(config: RunConfig, store: TokenStore, pool: Pool, batch: int) -> int:
    """Samples of the pool's start that fill one global batch, or all of them."""
    if not config.data.packing:
        return min(batch, pool.num_samples)
    wanted, looked_at = batch * config.data.max_length, batch
    while True:
        looked_at = min(2 * looked_at, pool.num_samples)
        ids = pool.ids(np.arange(looked_at, dtype=np.int64))
        sums = np.cumsum(store.lengths[ids], dtype=np.int64)
        if sums[-1] >= wanted:
            return int(np.searchsorted(sums, wanted)) + 1
        if looked_at == pool.num_samples:
            return looked_at
