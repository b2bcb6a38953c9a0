"""Rows that grow as the run goes on: `curriculum.seq_len`, by cutting, dropping or windows.

The length is that of the block's beginning (a block has one length), a multiple of `step`, paced
like a pool (curriculum/pacing.py) over what `end_at` counts, and exactly `end` from there on::

    L(tau) = floor(paced(tau, start, end) / step) x step, at least start rounded up to such a step

The rule is DeepSpeed's fixed_linear (and fixed_root, here wu_root); its schedule reaches a maximum
that is no multiple of the step only after its end, this one at its end. Short rows first: Li et
al., arXiv 2108.06084. The windows are those of Fan et al. (SkyLadder, arXiv 2503.15450), but they
begin with each document; as positions begin anew with a window, an architecture with learned
absolute positions trains the first ones only until the windows have grown.

Evaluation never comes here: it is always at full length.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil

import numpy as np

from ds_train.config.curriculum import SeqLenConfig
from ds_train.config.data import DataConfig
from ds_train.curriculum.pacing import RunLength, paced
from ds_train.curriculum.pool import PoolPart
from ds_train.data.epochs import BlockRows, Drawn, Totals, rows_of_samples
from ds_train.data.mix import Ints, epoch_samples, keyed_permutation
from ds_train.data.pieces import cut_samples, rows_of_pieces, with_windows
from ds_train.data.store import TokenStore
from ds_train.errors import DataError


def row_length(config: SeqLenConfig, max_length: int, tau: float) -> int:
    """Tokens of the longest row (or window) at tau = 0 .. 1 of the way to end_at, or past it."""
    end = config.end or max_length
    if tau >= 1:
        return end
    value = paced(config.pacing, tau, config.start, end)
    # what is a whole multiple in exact arithmetic shall not fall under it
    multiple = int(value / config.step + 1e-9) * config.step
    lowest = -(-config.start // config.step) * config.step
    return min(end, max(lowest, multiple))


_BLOCKS_A_RUN = 64
"""Lengths that a run has at least, where the growth and its steps allow for them."""


class Growing:
    """Makes rows of the samples of a block, at the length of the block's beginning."""

    def __init__(
        self,
        store: TokenStore,
        data: DataConfig,
        config: SeqLenConfig,
        length: RunLength,
        seed: int,
        *,
        keep_order: bool,
    ) -> None:
        """`keep_order`: pieces stay where their sample stands (else a block's are shuffled)."""
        self._store, self._data, self._config, self._length = store, data, config, length
        self._seed, self._keep_order = seed, keep_order
        self.end = config.end_at
        """Where the last length is reached."""
        self._mean_of = (0, 0.0)  # length, and what it leaves of a sample

    @property
    def shortens_rows(self) -> bool:
        """Whether rows themselves are shorter, and not what attention sees of them."""
        return self._config.mode != "window"

    def width(self, at: Totals) -> int:
        """Tokens of the longest row of a block that begins here."""
        tau = self._length.reached(self._config.end_at, at)
        return row_length(self._config, self._data.max_length, tau)

    def wanted(self, samples: int, at: Totals) -> int:
        """Samples of a block, at most `samples`: one step, or `1 / _BLOCKS_A_RUN` of the run.

        Short rows take few samples, so blocks sized for full rows would hold one length for long.
        """
        store, length, width = self._store, self._length, self.width(at)
        kept = float(store.lengths.mean())
        if self._config.mode == "truncate":
            kept = self._mean_kept(width)
        if self._data.packing:
            row = self._data.max_length if self._config.mode == "window" else width
            per_step = ceil(length.global_batch_size * row / kept)
        else:
            pieces = ceil((kept - 1) / (width - 1)) if self._config.mode == "reshape" else 1
            per_step = ceil(length.global_batch_size / max(1, pieces))
        limit = length.limit
        run = {
            "steps": limit.amount * per_step,
            "tokens": limit.amount / kept,
            "epochs": limit.amount * length.num_samples,
        }[limit.unit]
        most = max(1, ceil(run / _BLOCKS_A_RUN / per_step)) * per_step
        return min(samples, most)

    def _mean_kept(self, width: int) -> float:
        """Tokens of a sample that stay when it is truncated, on average."""
        if self._mean_of[0] != width:
            self._mean_of = width, float(np.minimum(self._store.lengths, width).mean())
        return self._mean_of[1]

    def rows(self, number: int, samples: Ints, drawn: Drawn, window: int) -> BlockRows:
        """Rows of block `number`, whose `drawn.row_length` says how long they may be."""
        store, width = self._store, drawn.row_length
        assert width is not None
        longest = int(store.lengths[samples].max(initial=0))
        if self._config.mode == "window" or (
            longest <= width and width >= self._data.max_length  # nothing is cut any more
        ):
            rows = rows_of_samples(store, samples, self._data, drawn, window)
            return rows if longest <= width else with_windows(store, rows, width)
        cut = cut_samples(store, samples, width, self._config.mode)
        if not len(cut.samples):
            raise DataError(self._nothing_left(width, len(samples)))
        order = np.arange(len(cut.samples))
        if self._config.mode == "reshape" and not self._keep_order:
            # the pieces of one sample shall not make up a step of their own
            order = keyed_permutation(len(order), self._seed, "pieces", number)
        return rows_of_pieces(store, cut, order, width, self._data, drawn, window)

    def _nothing_left(self, width: int, num_samples: int) -> str:
        place = "curriculum.seq_len.start"
        if width != self._config.start:
            place = f"curriculum.seq_len at {width} tokens; start"
        return (
            f"{place} = {self._config.start}: mode {self._config.mode} leaves nothing to learn "
            f"from in any of the {num_samples:,} samples of a block, since their supervised tokens "
            f"come after the first {width}; start longer, or set mode: reshape or window."
        )


class EpochDraws:
    """The epochs of a run without an order: each mixed by the sources' weights and shuffled.

    The same samples in the same order as without a curriculum; a block ends where an epoch does.
    """

    def __init__(
        self, store: TokenStore, weights: Sequence[float], seed: int, *, shuffle: bool
    ) -> None:
        self._store, self._weights, self._seed, self._shuffle = store, weights, seed, shuffle
        self._cursors = [(0, 0)]  # (epoch, place in it) before block 0, 1, ...
        self._recent: dict[int, Ints] = {}

    def draw(self, number: int, at: Totals, wanted: int, parts: Sequence[PoolPart]) -> Ints:
        """Samples of block `number`."""
        epoch, place = self._cursors[number]
        samples = self._epoch(epoch)
        stop = min(place + wanted, len(samples))
        if len(self._cursors) == number + 1:
            self._cursors.append((epoch, stop) if stop < len(samples) else (epoch + 1, 0))
        return samples[place:stop]

    def _epoch(self, epoch: int) -> Ints:
        if epoch not in self._recent:
            while len(self._recent) > 1:  # a step may reach across the border of two
                self._recent.pop(next(iter(self._recent)))
            self._recent[epoch] = epoch_samples(
                self._store.sources, self._weights, self._seed, epoch, self._shuffle
            )
        return self._recent[epoch]


def epoch_size(store: TokenStore, weights: Sequence[float]) -> int:
    """Samples of an epoch, on average."""
    counts = np.bincount(store.sources, minlength=len(weights)).tolist()
    pairs = zip(counts, weights, strict=True)
    return round(sum(count * Fraction(repr(float(weight))) for count, weight in pairs))
