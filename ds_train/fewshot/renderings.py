"""Which sample stands for an example in an episode: its template, and the word for its label.

All examples of an episode are written in the same template, drawn for the episode. With
`permute_labels` the labels' words change places among each other in each episode, so that only its
demonstrations say what they mean (Wei et al. 2023, "Symbol tuning", arXiv 2305.08298, goes further
and takes words that are none of the labels).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ds_train.config.fewshot import EpisodesConfig
from ds_train.data.classes import class_texts
from ds_train.data.mix import Ints, keyed_words
from ds_train.data.store import TokenStore
from ds_train.errors import DataError


class Renderings:
    """The samples of a store's examples."""

    def __init__(self, store: TokenStore, config: EpisodesConfig, names: Sequence[str]) -> None:
        """Raises DataError where labels shall change places and a task has none."""
        self._examples = store.examples
        self.gold = np.arange(store.num_samples, dtype=np.int64)
        """[num_examples] the right answer of each example, in its first template."""
        if self._examples is not None:
            self.gold = self._examples.group_gold[self._examples.first_group[:-1]]
        self._num_labels: Ints | None = None
        if config.permute_labels:
            self._num_labels = _count_labels(store, self.gold, names)

    def samples(self, examples: Ints, seed: int, *numbers: int, permute: bool) -> Ints:
        """Samples [e, n] of the examples [e, n] of episodes.

        `permute`: by labels that change places. A function of the arguments alone; what the first
        episodes are does not depend on the rest.
        """
        known, num = self._examples, len(examples)
        if known is None:
            return self.gold[examples]
        words = keyed_words(num, seed, "episodes/template", *numbers)
        groups = known.first_group[examples]
        templates = known.num_templates()[examples]
        groups += (words[:, None] % templates.astype(np.uint64)).astype(np.int64)
        right = known.group_gold[groups]
        if not permute or self._num_labels is None:
            return right
        swapped = self._swapped(self._num_labels[examples[:, -1]], seed, *numbers)
        choices = np.take_along_axis(swapped, known.choice[right].astype(np.int64), axis=1)
        return known.group_starts[groups] + choices

    def _swapped(self, num_labels: Ints, seed: int, *numbers: int) -> Ints:
        """[e, c] the label that takes the place of each; of as many labels as a task has."""
        assert self._num_labels is not None
        most = int(self._num_labels.max())
        keys = keyed_words(len(num_labels) * most, seed, "episodes/labels", *numbers)
        keys = keys.reshape(-1, most) >> np.uint64(1)
        keys[np.arange(most) >= num_labels[:, None]] = np.iinfo(np.uint64).max
        return np.argsort(keys, axis=1, kind="stable")


def _count_labels(store: TokenStore, gold: Ints, names: Sequence[str]) -> Ints:
    """[num_examples] labels of each example's task."""
    num_labels, faults = np.zeros(len(gold), np.int64), []
    sources = store.sources[gold]
    for source in np.unique(sources).tolist():
        texts = class_texts(store, source) if store.examples is not None else None
        if texts is None:
            faults.append(
                f"fewshot.episodes.permute_labels: task {names[source]} has no labels that its "
                "examples share (format classification has); remove the task, or the setting."
            )
        else:
            num_labels[sources == source] = len(texts)
    if faults:
        raise DataError(faults)
    return num_labels
