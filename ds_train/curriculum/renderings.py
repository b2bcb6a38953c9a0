"""Labelled examples under a curriculum or a mixture: examples are drawn, then a rendering of each.

Pools and difficulties know one sample of each example, the right answer in the first template; what
a block trains on is that answer in a template drawn by hash. A mixture counts an example's tokens
as the mean over its templates, so its shares of the tokens hold over many draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ds_train.data.mix import Ints
from ds_train.data.store import TokenStore


class Renderings:
    """From the examples of a block to the samples that it trains on."""

    def __init__(self, store: TokenStore, seed: int) -> None:
        """`store`: with every rendering."""
        self.store, self._seed = store, seed

    @property
    def lengths(self) -> NDArray[np.integer | np.floating]:
        """[num_examples] tokens of each example's right answer, the mean over its templates."""
        of_store = self.store.examples
        if of_store is None or not of_store.has_renderings:
            return self.store.lengths
        of_groups = self.store.lengths[of_store.group_gold].astype(np.int64)
        return np.add.reduceat(of_groups, of_store.first_group[:-1]) / of_store.num_templates()

    def draw(self, number: int, examples: Ints) -> Ints:
        """A sample of each of the examples of block `number`; the same ids without renderings."""
        of_store = self.store.examples
        if of_store is None or not of_store.has_renderings:
            return examples
        return of_store.draw(examples, self._seed, number)
