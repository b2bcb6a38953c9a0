"""`fewshot.subset`: k examples of each class to train on, k others as dev, by hash.

The examples of a class stand in the order of sha256("seed|class|id"); the first k are trained on,
the next k are dev. A class is the label as it stands in the data, an id the hash of what a row says
(its text, its label, ...), so that neither the order of the file nor the tokenizer, the templates
or the labels' words move an example, and under one seed the set for a smaller k lies within the set
for a larger one. Rows that say the same count once, and what is trained on in one source is not dev
in another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_train.config.fewshot import SubsetConfig
from ds_train.config.run import RunConfig
from ds_train.data.classes import class_labels, class_texts, example_classes
from ds_train.data.fingerprint import hash_of
from ds_train.data.mix import Ints
from ds_train.data.store import TokenStore
from ds_train.errors import DataError

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChosenClass:
    """What was taken of one class of a source (or of a whole source)."""

    source: str
    name: str | None
    """The class, as the model is asked for it; None where k counts the examples of the source."""
    train: Ints
    """Rows that are trained on, in the order of their hashes (numbers of `Rows`)."""
    dev: Ints
    """Rows that are evaluated on."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows that a store's samples were made from, in the store's order."""

    of_sample: Ints
    """[N] number of each sample's row."""
    first: Ints
    """[num_rows] first sample of each row."""
    ids: NDArray[np.uint64]
    """[num_rows] hash of what the row says."""

    @classmethod
    def of(cls, store: TokenStore) -> Rows:
        """Those of a store with labelled examples."""
        assert store.examples is not None
        begins = np.ones(store.num_samples, bool)
        begins[1:] = (np.diff(store.sources) != 0) | (np.diff(store.ordinals) != 0)
        first = np.flatnonzero(begins)
        return cls(np.cumsum(begins) - 1, first, store.examples.row_hash[first])


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """The examples of a k-shot run."""

    train: TokenStore
    dev: TokenStore | None
    facts: Facts
    """What is written to the run folder: settings, ids and rows of each class, and `hash`."""

    @property
    def summary(self) -> Facts:
        """The facts without the lists."""
        return {key: value for key, value in self.facts.items() if key != "classes"} | {
            "num_train": sum(len(one["train"]) for one in self.facts["classes"]),
            "num_dev": sum(len(one["dev"]) for one in self.facts["classes"]),
            "num_classes": len(self.facts["classes"]),
        }


def choose_subset(config: RunConfig, store: TokenStore, names: Sequence[str]) -> Subset:
    """Training and dev examples out of what is left to train on; the same on every rank.

    Args:
        names: of each source index of the store.

    Raises:
        DataError: a class with too few examples, a source with one class or with none.
    """
    assert config.fewshot is not None and config.fewshot.subset is not None
    subset, rows = config.fewshot.subset, Rows.of(store)
    seed = config.train.seed if subset.seed is None else subset.seed
    members = _classes(store, rows, names, subset)
    ranked = [
        (source, name, _ranked(store, rows, own, f"{seed}|{label}"))
        for source, name, label, own in members
    ]
    trained = [own[: subset.k] for _, _, own in ranked]
    taken = rows.ids[np.concatenate([np.empty(0, np.int64), *trained])]
    chosen, faults = [], []
    for (source, name, own), train in zip(ranked, trained, strict=True):
        rest = own[subset.k :]
        left = rest[~np.isin(rows.ids[rest], taken)]
        dev = left[: subset.k] if subset.dev else left[:0]
        if len(train) < subset.k or (subset.dev and len(dev) < subset.k):
            faults.append(_too_few(subset, source, name, len(train), len(left)))
        chosen.append(ChosenClass(source, name, train, dev))
    if faults:
        raise DataError(faults)
    facts = _facts(store, rows, subset, seed, chosen)
    dev_rows = [one.dev for one in chosen]
    dev_store = _samples_of(store, rows, dev_rows) if subset.dev else None
    return Subset(_samples_of(store, rows, trained), dev_store, facts)


def _classes(
    store: TokenStore, rows: Rows, names: Sequence[str], subset: SubsetConfig
) -> list[tuple[str, str | None, str, Ints]]:
    """(source, class, its label in the data, its rows) of all that k counts the examples of."""
    found: list[tuple[str, str | None, str, Ints]] = []
    sources, faults = store.sources[rows.first], []
    assert store.examples is not None
    classes = example_classes(store)[store.examples.example[rows.first]]
    for source in np.unique(sources).tolist():
        own = np.flatnonzero(sources == source)
        texts = class_texts(store, source)
        if subset.per == "source":
            found.append((names[source], None, "", own))
        elif texts is None:
            faults.append(
                f"fewshot.subset.per = class: source {names[source]} has no classes (format "
                f"{store.meta['sources'][source]['format']}, each row with an answer of its own); "
                "set per: source."
            )
        elif len(np.unique(classes[own])) == 1:
            faults.append(
                f"fewshot.subset: source {names[source]} has one class only, "
                f'"{texts[classes[own[0]]]}", so there is nothing to tell apart; add rows of '
                "another class, or set per: source."
            )
        else:
            labels = class_labels(store, source)
            found += [
                (names[source], text, label, own[classes[own] == place])
                for place, (text, label) in enumerate(zip(texts, labels, strict=True))
            ]
    if faults:
        raise DataError(faults)
    return found


def _ranked(store: TokenStore, rows: Rows, own: Ints, prefix: str) -> Ints:
    """Rows of a class by their hashes, each content once.

    Of rows that say the same the one comes whose tokens have the lowest hash (other columns may
    stand in a template), so that the order of the file plays no part in this either.
    """
    keys = [
        hashlib.sha256(f"{prefix}|{row_id:016x}".encode("utf-8", "surrogatepass")).digest()
        for row_id in rows.ids[own].tolist()
    ]
    tokens = store.hashes[rows.first[own]].tolist()
    order = sorted(range(len(own)), key=lambda place: (keys[place], tokens[place], place))
    once: dict[bytes, int] = {}
    for place in order:
        once.setdefault(keys[place], place)
    return own[np.array(list(once.values()), np.int64)]


def _too_few(
    subset: SubsetConfig, source: str, name: str | None, num_train: int, num_left: int
) -> str:
    """Why a class does not have enough examples, and what would fit."""
    k, total = subset.k, num_train + num_left
    where = f"source {source}" if name is None else f'class "{name}" of source {source}'
    has = f"{where} has {total:,} different {'example' if total == 1 else 'examples'} to train on"
    if num_train < k:
        remedy = f"take k of at most {total // 2 if subset.dev else total:,}" if total > 1 else ""
        remedy = remedy or "add examples of it"
        return f"fewshot.subset.k = {k:,}: {has}; {remedy}."
    return (
        f"fewshot.subset.dev = true: {has}, and k = {k:,} for training and as many for dev want "
        f"{2 * k:,}; take k of at most {total // 2:,}, or set dev: false."
    )


def _samples_of(store: TokenStore, rows: Rows, chosen: Sequence[Ints]) -> TokenStore:
    """The store with the samples of these rows only, in its order."""
    is_chosen = np.zeros(len(rows.first), bool)
    is_chosen[np.concatenate([np.empty(0, np.int64), *chosen])] = True
    return store.select(np.flatnonzero(is_chosen[rows.of_sample]))


def _facts(
    store: TokenStore,
    rows: Rows,
    subset: SubsetConfig,
    seed: int,
    chosen: Sequence[ChosenClass],
) -> Facts:
    """Settings, lists and their hash; the hash knows contents, not row numbers."""
    settings: Facts = {"k": subset.k, "seed": seed, "per": subset.per, "dev": subset.dev}

    def listed(own: Ints) -> list[Facts]:
        ids, numbers = rows.ids[own].tolist(), store.ordinals[rows.first[own]].tolist()
        pairs = zip(ids, numbers, strict=True)
        return [{"id": f"{row_id:016x}", "row": number + 1} for row_id, number in pairs]

    classes = [
        {
            "source": one.source,
            "class": one.name,
            "train": listed(one.train),
            "dev": listed(one.dev),
        }
        for one in chosen
    ]
    contents = [
        [one.source, rows.ids[one.train].tolist(), rows.ids[one.dev].tolist()] for one in chosen
    ]
    return settings | {"hash": hash_of([settings, contents]), "classes": classes}
