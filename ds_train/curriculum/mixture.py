"""Mixtures: shares of the tokens by source, in stages, each source with its own endless passes.

A block asks each source for its share of the block's tokens and takes the number of samples that
comes nearest; what is missing or too much is owed to the next block. So the shares hold over any
stretch up to one sample a source, whatever the samples' lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ds_train.config.mixture import MixtureConfig
from ds_train.curriculum.draws import Cursor, stream
from ds_train.curriculum.pacing import RunLength
from ds_train.curriculum.pool import PoolPart
from ds_train.data.epochs import Totals
from ds_train.data.mix import Ints, keyed_permutation
from ds_train.errors import DataError


@dataclass(frozen=True)
class SourceFacts:
    """A source of the mixture."""

    name: str
    num_tokens: int
    num_samples: int

    @property
    def mean_length(self) -> float:
        """Tokens of a sample, on average."""
        return self.num_tokens / self.num_samples


class Shares:
    """Shares of the tokens that each source shall have, by the place in the run."""

    def __init__(
        self, config: MixtureConfig, sources: Sequence[SourceFacts], length: RunLength
    ) -> None:
        self._length = length
        untils = [stage.until for stage in config.stages[:-1]]
        self.borders = [until for until in untils if until is not None]
        """Where the second stage and those after it begin."""
        if config.temperature is None:
            weights = [
                [stage.weights.get(source.name, 0.0) for source in sources]
                for stage in config.stages
            ]
        else:
            weights = [[source.num_tokens ** (1 / config.temperature) for source in sources]]
        self.by_stage = [np.array(one) / sum(one) for one in weights]
        """float64 [num_sources] of each stage; sums to 1."""

    def stage(self, at: Totals) -> int:
        """Number of the stage at a place of the run."""
        return sum(self._length.reached(border, at) >= 1 for border in self.borders)


class MixtureDraws:
    """Blocks made of every source's share, shuffled together."""

    def __init__(
        self,
        config: MixtureConfig,
        lengths: NDArray[np.integer | np.floating],
        sources: Sequence[SourceFacts],
        shares: Shares,
        seed: int,
    ) -> None:
        """`lengths` [N]: tokens of each sample, on average where it is rendered in several ways."""
        self._config, self._lengths, self._seed = config, lengths, seed
        self._sources, self.shares = sources, shares
        self._cursors = [tuple(Cursor() for _ in sources)]
        self._limits = [self._limit(source) for source in sources]

    def _limit(self, source: SourceFacts) -> int | None:
        """Samples that the source may give in the whole run; None without a limit."""
        epochs = self._config.max_epochs.get(source.name)
        if epochs is None or self._config.on_exhausted == "repeat":
            return None
        return round(epochs * source.num_samples)

    def draw(self, number: int, at: Totals, wanted: int, parts: Sequence[PoolPart]) -> Ints:
        """Samples of one block, about `wanted`."""
        cursors = [
            cursor if cursor.part == part else replace(cursor, part=part, since=number, place=0)
            for cursor, part in zip(self._cursors[number], parts, strict=True)
        ]
        shares = self._shares_left(cursors, at)
        lengths = [source.mean_length for source in self._sources]
        num_tokens = wanted / float(np.sum(shares / lengths))
        drawn = []
        for group, share in enumerate(shares):
            found, cursors[group] = self._draw_one(group, cursors[group], share * num_tokens)
            drawn.append(found)
        if len(self._cursors) == number + 1:
            self._cursors.append(tuple(cursors))
        samples = np.concatenate(drawn)
        return samples[keyed_permutation(len(samples), self._seed, "mixed", number)]

    def _shares_left(self, cursors: Sequence[Cursor], at: Totals) -> np.ndarray:
        """The stage's shares, those of exhausted sources dealt out to the others."""
        stage = self.shares.stage(at)
        shares = self.shares.by_stage[stage].copy()
        for group, limit in enumerate(self._limits):
            if limit is not None and cursors[group].drawn >= limit and shares[group] > 0:
                if self._config.on_exhausted == "error":
                    raise DataError(self._exhausted(group, stage, at))
                shares[group] = 0
        if not shares.any():
            raise DataError(
                f"data.mixture.stages[{stage}]: after {at.tokens:,} tokens each of its sources has "
                "been passed max_epochs times, and nothing is left to draw; raise max_epochs, add "
                "data, or make the run shorter."
            )
        return shares / shares.sum()

    def _exhausted(self, group: int, stage: int, at: Totals) -> str:
        source = self._sources[group]
        epochs = self._config.max_epochs[source.name]
        return (
            f"data.mixture.max_epochs.{source.name} = {epochs:g}: reached after {at.tokens:,} "
            f"tokens, while stage {stage + 1} still asks for it (on_exhausted: error); raise "
            "max_epochs, lower its weight, or set on_exhausted: renormalise."
        )

    def _draw_one(self, group: int, cursor: Cursor, num_tokens: float) -> tuple[Ints, Cursor]:
        """The next samples of one source, nearest to so many tokens and those owed."""
        quota = num_tokens + cursor.owed
        if num_tokens == 0 or quota <= 0:
            return np.empty(0, dtype=np.int64), cursor if num_tokens == 0 else replace(
                cursor, owed=quota
            )
        limit = self._limits[group]
        most = limit - cursor.drawn if limit is not None else None
        guess = int(1.2 * quota / self._sources[group].mean_length) + 16
        while True:
            ahead = guess if most is None else min(guess, most)
            samples = stream(cursor, ahead, self._seed, group)
            sums = np.cumsum(self._lengths[samples], dtype=np.float64)
            if ahead == most or sums[-1] >= quota:
                break
            guess *= 2
        count = int(np.searchsorted(sums, quota)) + 1  # the first that reaches the quota
        if count > len(samples):
            count, owed = len(samples), 0.0
        else:
            before = float(sums[count - 2]) if count > 1 else 0.0
            if quota - before < sums[count - 1] - quota:
                count -= 1
            owed = quota - (float(sums[count - 1]) if count else 0.0)
        place, total = cursor.place + count, cursor.drawn + count
        return samples[:count], replace(cursor, place=place, drawn=total, owed=owed)
