"""The tasks of episodes: what may be a demonstration for what, source by source.

A task is a source. Its examples stand on a line of places, one place for each different input (so
that no demonstration has the query's input, word for word, and none comes twice), those with equal
answers side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ds_train.config.fewshot import EpisodesConfig
from ds_train.data.mix import Ints, keyed_words
from ds_train.data.store import TokenStore
from ds_train.errors import DataError
from ds_train.fewshot.hashes import text_hashes
from ds_train.fewshot.pick import pick, take_turns


@dataclass(frozen=True)
class Task:
    """One source."""

    name: str
    examples: Ints
    """[p] example at each place."""
    bounds: Ints
    """[c + 1] where the places of each class begin; one class where answers don't matter."""

    def classes(self, places: Ints) -> Ints:
        """Class of each place."""
        return np.searchsorted(self.bounds, places, side="right") - 1


class Tasks:
    """The tasks of a store's examples, and the demonstrations of queries."""

    def __init__(
        self,
        store: TokenStore,
        gold: Ints,
        names: Sequence[str],
        config: EpisodesConfig,
        most: int,
    ) -> None:
        """`gold` [e]: the sample that stands for each example; `most`: demonstrations, at most.

        Raises:
            DataError: a task has too few examples, or answers, for so many demonstrations.
        """
        self.config = config
        self.sources = store.sources[gold].astype(np.int64)
        self._place = np.zeros(len(gold), np.int64)
        self.tasks: dict[int, Task] = {}
        faults = []
        inputs = text_hashes(store, gold, supervised=False)
        answers = None
        if most and _needs_classes(config):
            answers = text_hashes(store, gold, supervised=True)
        for source in np.unique(self.sources).tolist():
            members = np.flatnonzero(self.sources == source)
            task = self._line(inputs, members, answers, names[source])
            self.tasks[source] = task
            faults += list(_faults(task, config, most))
        if faults:
            raise DataError(faults)

    def _line(
        self, inputs: np.ndarray, members: Ints, answers: np.ndarray | None, name: str
    ) -> Task:
        """The line of one task; remembers the place of every member."""
        _, first, which = np.unique(inputs[members], return_index=True, return_inverse=True)
        kind = np.zeros(len(first), np.int64)
        if answers is not None:
            kind = np.unique(answers[members][first], return_inverse=True)[1]
        order = np.argsort(kind, kind="stable")
        place = np.empty(len(first), np.int64)
        place[order] = np.arange(len(first))
        self._place[members] = place[which]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(kind))])
        return Task(name, members[first[order]], bounds)

    def demonstrations(self, queries: Ints, k: int, seed: int, *numbers: int) -> Ints:
        """[e, k] examples to show before each query, none of them with the query's input.

        A function of the arguments alone; those of the first queries do not depend on the rest.
        """
        shown = np.empty((len(queries), k), np.int64)
        if k == 0:
            return shown
        sources = self.sources[queries]
        for source in np.unique(sources).tolist():
            here = np.flatnonzero(sources == source)
            task = self.tasks[source]
            # numbered by the source, so that a task's draws do not depend on the other tasks
            places = self._draw(task, self._place[queries[here]], k, seed, (source, *numbers))
            shown[here] = task.examples[places]
        return shown

    def _draw(self, task: Task, places: Ints, k: int, seed: int, numbers: tuple[int, ...]) -> Ints:
        words = keyed_words(len(places) * k, seed, "episodes/draw", *numbers).reshape(-1, k)
        own = task.classes(places)
        first, last = places, places + 1
        if not self.config.label_overlap:
            first, last = task.bounds[own], task.bounds[own + 1]
        if self.config.order == "random":
            low, high = np.zeros_like(words, np.int64), np.full(words.shape, task.bounds[-1])
        else:
            left = np.tile(np.diff(task.bounds), (len(places), 1))
            left[np.arange(len(places)), own] -= last - first
            turns = take_turns(seed, "episodes", numbers, left, k)
            low, high = task.bounds[turns], task.bounds[turns + 1]
        return pick(words, low, high, first, last)


def _needs_classes(config: EpisodesConfig) -> bool:
    return config.order == "balanced" or not config.label_overlap


def _faults(task: Task, config: EpisodesConfig, most: int) -> list[str]:
    """Why a task has no episode with so many demonstrations."""
    sizes, num = np.diff(task.bounds), len(task.examples)
    if not most:
        return []
    if _needs_classes(config) and len(sizes) == 1:
        setting = "order = balanced" if config.order == "balanced" else "label_overlap = false"
        return [
            f"fewshot.episodes.{setting}: task {task.name} has one answer only, the same for all "
            f"{num:,} examples; remove the task, or the setting."
        ]
    if config.order == "balanced" and len(sizes) == num:
        return [
            f"fewshot.episodes.order = balanced: every example of task {task.name} has an answer "
            "of its own, so there are no classes to balance; take random."
        ]
    left = num - (1 if config.label_overlap else int(sizes.max()))
    if left >= most:
        return []
    which = "others" if config.label_overlap else "with another answer"
    return [
        f"fewshot.episodes: {most} demonstrations, but task {task.name} has {num:,} different "
        f"{'example' if num == 1 else 'examples'}, and for a query at least {left:,} {which}; "
        f"take k (and shots) of at most {left}, or remove the task."
    ]
