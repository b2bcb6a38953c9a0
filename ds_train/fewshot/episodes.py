"""Episodes: rows of k demonstrations and a query of the same task, drawn anew each epoch.

In-context learning as a training goal: MetaICL (Min et al. 2022, arXiv 2110.15943) and in-context
tuning (Chen et al. 2022, arXiv 2110.07814). The sources of `data.train` are the tasks. An epoch has
every example as a query once (with another `temperature`, small tasks more often and large ones
less); what is shown before it depends on (seed, epoch, place in the epoch) alone, so any step can
be made at any time, on any number of ranks, and a resumed run goes on as it would have.

For evaluation every example is the query of one episode that is the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil

import numpy as np

from ds_train.config.data import DataConfig
from ds_train.config.fewshot import EpisodesConfig
from ds_train.data.epochs import BlockRows, Totals, running_sum
from ds_train.data.mix import Ints, epoch_samples
from ds_train.data.pack import pack_rows, single_rows
from ds_train.data.store import TokenStore
from ds_train.fewshot.layout import Joints, Laid, Layout
from ds_train.fewshot.renderings import Renderings
from ds_train.fewshot.tasks import Tasks

STRETCH = {False: 1024, True: 8192}
"""Episodes of a block, by whether they are packed (more of them fill rows better)."""
_EVALUATION_SEED = 0
"""Whatever train.seed is: all runs are measured on the same episodes."""


@dataclass(frozen=True)
class EvaluationEpisodes:
    """One episode a row, each query's sample once, ascending."""

    rows: list[Ints]
    """Parts [n, 4] of each row (data/parts.py)."""
    queries: Ints
    """[num_rows] sample of the query."""
    lengths: Ints
    """[num_rows] tokens."""
    supervised: Ints
    """[num_rows] tokens that are measured."""
    num_shown: Ints
    """[num_rows] demonstrations that fit."""


class Episodes:
    """The examples of a store, and any episode out of them."""

    def __init__(
        self,
        store: TokenStore,
        config: EpisodesConfig,
        joints: Joints,
        max_length: int,
        names: Sequence[str],
        most: int,
    ) -> None:
        """`names`: of the sources; `most`: demonstrations that will be asked for, at most.

        Raises:
            DataError: the data has no such episodes.
        """
        self.config = config
        self.renderings = Renderings(store, config, names)
        self.tasks = Tasks(store, self.renderings.gold, names, config, most)
        self.layout = Layout(store, config, joints, max_length, names)

    @property
    def sources(self) -> Ints:
        """[num_examples] task of each example."""
        return self.tasks.sources

    def lay(self, queries: Ints, k: int, seed: int, *numbers: int, training: bool) -> Laid:
        """Episodes with these examples as queries, drawn by (seed, numbers).

        `training`: with `permute_labels` and `loss_on` as the recipe says; an evaluation keeps the
        labels, and measures the query's answer.
        """
        shown = self.tasks.demonstrations(queries, k, seed, *numbers)
        examples = np.concatenate([shown, queries[:, None]], axis=1)
        samples = self.renderings.samples(examples, seed, *numbers, permute=training)
        learn_all = training and self.config.loss_on == "all"
        return self.layout.lay(samples[:, :-1], samples[:, -1], learn_all=learn_all)

    def for_evaluation(self, k: int) -> EvaluationEpisodes:
        """Every example as the query once, in their order."""
        queries = np.arange(len(self.sources), dtype=np.int64)
        laid = self.lay(queries, k, _EVALUATION_SEED, training=False)
        return EvaluationEpisodes(
            [laid.parts[start:stop] for start, stop in pairwise(laid.offsets)],
            laid.parts[laid.offsets[1:] - 1, 0],
            laid.lengths,
            laid.supervised,
            laid.num_shown,
        )


class EpisodeBlocks:
    """Epoch after epoch of episodes, in blocks of at most STRETCH."""

    num_recent = 8

    def __init__(
        self,
        episodes: Episodes,
        data_config: DataConfig,
        seed: int,
        source_weights: Sequence[float],
    ) -> None:
        self.episodes, self._data, self._seed = episodes, data_config, seed
        self._weights = passes(episodes.sources, source_weights, episodes.config.temperature)
        sizes = np.bincount(episodes.sources, minlength=len(source_weights)).tolist()
        self._sizes = [
            (Fraction(repr(weight)), size)
            for weight, size in zip(self._weights, sizes, strict=True)
        ]
        self._firsts = [0]
        self._order: tuple[int, Ints] | None = None
        self._num_shown: dict[int, int] = {}

    def plan(self, number: int, start: Totals) -> BlockRows:
        """The episodes after the first `start.samples` ones."""
        epoch = self._epoch_of(start.samples)
        place = start.samples - self.first(epoch)
        size = STRETCH[self._data.packing]
        config = self.episodes.config
        laid = self.episodes.lay(
            self._queries(epoch)[place : place + size],
            config.k,
            self._seed,
            epoch,
            place,
            training=True,
        )
        self._num_shown[number] = int(laid.num_shown.sum())
        return rows_of_episodes(laid, self._data)

    def num_shown(self, number: int) -> int:
        """Demonstrations in a block that has been planned: those that fit."""
        return self._num_shown[number]

    def _queries(self, epoch: int) -> Ints:
        """Examples of an epoch in their order; the last one asked for is remembered."""
        known = self._order
        if known is None or known[0] != epoch:
            shuffle = self._data.shuffle
            order = epoch_samples(self.episodes.sources, self._weights, self._seed, epoch, shuffle)
            known = self._order = (epoch, order)
        return known[1]

    def first(self, epoch: int) -> int:
        """Episodes before an epoch."""
        while len(self._firsts) <= epoch:
            number = len(self._firsts)
            self._firsts.append(sum(int(number * weight * n) for weight, n in self._sizes))
        return self._firsts[epoch]

    def _epoch_of(self, episode: int) -> int:
        epoch = 0 if self._firsts[-1] <= episode else int(np.searchsorted(self._firsts, episode))
        epoch = max(epoch - 1, 0)
        while self.first(epoch + 1) <= episode:
            epoch += 1
        return epoch

    def epoch(self, start: Totals, number: int, rows: BlockRows, index: int) -> float:
        """Passes over the queries: 1.5 is the middle of the second."""
        at = start.samples + int(rows.samples_before[index])
        epoch = self._epoch_of(at)
        first = self.first(epoch)
        return epoch + (at - first) / (self.first(epoch + 1) - first)

    def target_samples(self, num_epochs: float) -> int | None:
        """Episodes that make up so many epochs."""
        whole, part = divmod(Fraction(repr(float(num_epochs))), 1)
        first = self.first(int(whole))
        return first + ceil(part * (self.first(int(whole) + 1) - first))


def passes(sources: Ints, weights: Sequence[float], temperature: float) -> list[float]:
    """Passes over each source in an epoch: shares of (examples x weight) ** (1 / temperature).

    An epoch has as many episodes whatever the temperature.
    """
    if temperature == 1:
        return [float(weight) for weight in weights]
    sizes = np.bincount(sources, minlength=len(weights)).astype(np.float64)
    amounts = sizes * np.asarray(weights, np.float64)
    shares = np.where(amounts > 0, amounts ** (1 / temperature), 0.0)
    shares *= amounts.sum() / shares.sum()
    return [float(share / size) if size else 1.0 for share, size in zip(shares, sizes, strict=True)]


def rows_of_episodes(laid: Laid, data_config: DataConfig) -> BlockRows:
    """Episodes become rows: packed, or one each."""
    order = np.arange(len(laid.lengths), dtype=np.int64)
    if data_config.packing:
        firsts, order = pack_rows(order, laid.lengths, data_config.max_length)
    else:
        firsts, order = single_rows(order)
    counts = np.diff(laid.offsets)[order]
    ends = running_sum(counts)
    # the parts of the episodes in their new order
    which = np.arange(ends[-1]) + np.repeat(laid.offsets[order] - ends[:-1], counts)
    parts = laid.parts[which]
    return BlockRows(
        ends[firsts],
        parts[:, 0],
        tokens_before=running_sum(laid.lengths[order])[firsts],
        supervised_before=running_sum(laid.supervised[order])[firsts],
        tokens=parts[:, 2] - parts[:, 1],
        starts=parts[:, 1],
        stops=parts[:, 2],
        roles=parts[:, 3],
        num_samples_before=firsts,
        dropped_before=running_sum(laid.dropped[order])[firsts],
    )
