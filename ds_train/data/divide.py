"""Tokenised samples divided into what is trained and what is evaluated on, with their audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ds_train.config.run import RunConfig
from ds_train.data.audit import Audit, audit_part, audit_source, first_of_kind
from ds_train.data.dev import dev_members
from ds_train.data.fingerprint import hash_of
from ds_train.data.limit import limited
from ds_train.data.sources import Source
from ds_train.data.store import TokenStore
from ds_train.errors import DataError
from ds_train.fewshot.held_out import check_disjoint, held_out_tasks
from ds_train.fewshot.ranking import check_rankable
from ds_train.fewshot.subset import Subset, choose_subset


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Tokenised data of a recipe, divided into what is trained and what is evaluated on."""

    train: TokenStore
    validation: TokenStore | None
    audit: Audit
    """As saved with the run: `sources` (a dict each), `train`, `validation`, settings."""
    fingerprint: str
    """Names the samples and their division; equal on every machine for equal data."""
    source_names: tuple[str, ...]
    """Of each source index of the stores: training sources, then validation sources."""
    source_weights: tuple[float, ...]
    """Passes per epoch over each source, by the same index."""
    dev: TokenStore | None = None
    """What a run is evaluated on as it goes: that of data.dev, or of fewshot.subset."""
    subset: Subset | None = None
    """What fewshot.subset has chosen; `train` and `dev` are its parts."""

    @property
    def of_examples(self) -> PreparedData:
        """With one sample for each labelled example to train on: what curricula draw from."""
        return replace(self, train=self.train.of_examples())

    @property
    def evaluated(self) -> TokenStore | None:
        """What the loss is measured on during a run: dev where there is one, else validation.

        Of labelled examples the right answers only, in every template.
        """
        return None if self.held_out is None else self.held_out.gold()

    @property
    def held_out(self) -> TokenStore | None:
        """That part with the wrong answers too, where these were rendered."""
        return self.dev if self.dev is not None else self.validation


def held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """bool [N]: which samples are held out; equal samples always go together."""
    mixed = (hashes ^ np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53 < fraction


def divide(
    config: RunConfig, sources: Sequence[Source], store: TokenStore, name: str
) -> PreparedData:
    """Training and validation parts, with their audit."""
    fraction = config.data.validation.fraction or 0.0
    from_validation = np.array([source.validation for source in sources], bool)
    # a labelled example goes as a whole, and with any tokenizer
    hashes = store.hashes if store.examples is None else store.examples.row_hash
    tasks = held_out_tasks(config, sources)
    only_evaluated = from_validation | tasks
    is_held_out = only_evaluated[store.sources] | held_out(hashes, fraction)
    audit = _audit(config, sources, store)
    _check_sources(sources, store, audit, is_held_out, only_evaluated, fraction)
    check_disjoint(sources, store, tasks, ~is_held_out)
    is_dev = dev_members(
        config.data,
        sources,
        store,
        is_held_out & ~np.array([source.is_dev for source in sources], bool)[store.sources],
        # another choice than that of validation, also where the fractions are equal
        lambda share: held_out(hashes ^ np.uint64(0x5851F42D4C957F2D), share),
    )
    train = store.select(np.flatnonzero(~is_held_out & ~is_dev))
    is_held_out &= ~is_dev
    validation = store.select(np.flatnonzero(is_held_out)) if is_held_out.any() else None
    names = tuple(source.name for source in sources)
    subset = None
    if config.fewshot is not None and config.fewshot.subset is not None:
        subset = choose_subset(config, train, names)
        train, audit["subset"] = subset.train, subset.summary
    if config.data.limit is not None:
        train = limited(train, config.data.limit, names[: len(config.data.train)])
    dev = subset.dev if subset is not None else None
    if is_dev.any():
        dev = store.select(np.flatnonzero(is_dev))
    audit["train"] = audit_part(train)
    if config.evaluate.rank_classification:
        check_rankable(validation if dev is None else dev, "the held-out data")
    if dev is not None:
        audit["dev"] = audit_part(dev)
    audit["validation"] = audit_part(validation) if validation else None
    audit["validation_in_train"] = _num_leaked(validation, train) if validation else 0
    chosen = [] if subset is None else [subset.facts["hash"]]
    parts = [name, fraction, *sorted(config.held_out_tasks), *chosen, *_part_facts(config)]
    audit["fingerprint"] = hash_of(parts)
    weights = tuple(source.config.weight for source in sources)
    return PreparedData(train, validation, audit, audit["fingerprint"], names, weights, dev, subset)


def _part_facts(config: RunConfig) -> list[Any]:
    """What data.dev and data.limit say about the division; nothing without them."""
    dev, limit = config.data.dev, config.data.limit
    facts: list[Any] = [] if dev is None else [f"dev {dev.fraction} {len(dev.sources)}"]
    return facts + ([] if limit is None else [limit.model_dump(mode="json")])


def _num_leaked(validation: TokenStore, train: TokenStore) -> int:
    """Held-out samples that are trained on too; labelled examples, in any rendering."""
    if validation.examples is None or train.examples is None:
        return int(np.isin(validation.hashes, train.hashes).sum())
    contents = validation.examples.row_hash[validation.examples.starts[:-1]]
    return int(np.isin(contents, train.examples.row_hash).sum())


def _audit(config: RunConfig, sources: Sequence[Source], store: TokenStore) -> Audit:
    first = first_of_kind(store)
    parts = []
    for index, (source, facts) in enumerate(zip(sources, store.meta["sources"], strict=True)):
        numbers = audit_source(store, index, facts["counts"], first)
        settings = {key: value for key, value in facts.items() if key != "counts"}
        path = source.config.path
        parts.append(
            {"name": source.name, "field": source.field, "path": path} | settings | numbers
        )
    return {
        "sources": parts,
        "max_length": config.data.max_length,
        "chat_template": store.meta["chat_template"],
    }


def _check_sources(
    sources: Sequence[Source],
    store: TokenStore,
    audit: Audit,
    is_held_out: np.ndarray,
    only_evaluated: np.ndarray,
    fraction: float,
) -> None:
    """DataError for sources that nothing is left of, and for a division with an empty part."""
    faults = []
    for index, (source, facts) in enumerate(zip(sources, audit["sources"], strict=True)):
        members = store.sources == index
        if not members.any():
            faults.append(
                f"{source.field} ({source.name}): nothing can be learned from its "
                f"{facts['rows']:,} {'row' if facts['rows'] == 1 else 'rows'}: "
                f"{_why_dropped(facts, audit['max_length'])}."
            )
        elif not only_evaluated[index] and is_held_out[members].all():
            faults.append(
                f"data.validation.fraction = {fraction}: nothing of {source.field} "
                f"({source.name}, {members.sum():,} samples) is left to train on; "
                "take a smaller fraction."
            )
    if fraction and not faults and not is_held_out.any():
        faults.append(
            f"data.validation.fraction = {fraction}: none of the {store.num_samples:,} samples "
            "would be held out; take a larger fraction, or give data.validation.sources."
        )
    if faults:
        raise DataError("\n".join(faults))


def _why_dropped(facts: Audit, max_length: int) -> str:
    """Why no row of a source is left, and what would keep them."""
    reasons = []
    if too_long := facts["dropped_too_long"]:
        reasons.append(
            f"{too_long:,} longer than data.max_length = {max_length:,} (raise it, or set "
            "data.over_length: truncate or split)"
        )
    if unsupervised := facts["dropped_unsupervised"]:
        reasons.append(
            f"{unsupervised:,} without a token that loss_on = {facts['loss_on']} learns from (see "
            "whether the answers are empty)"
        )
    return ", ".join(reasons)
