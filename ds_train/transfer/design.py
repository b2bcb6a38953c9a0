"""From the transfer section to a comparison: arm x size of the target data, each with its grid.

    OUTPUT_DIR/warm-20kB/seed-0/lr-0.001

The arms differ in what the name says and in nothing else: data, dev and test text, batch, schedule
and early stopping are the recipe's. Within a seed all random arms start from the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_train.compare.arms import Comparison, plan_comparison
from ds_train.config.data import DataConfig, SourceConfig
from ds_train.config.load import load_recipe
from ds_train.config.run import RunConfig
from ds_train.config.transfer import RANDOM, WARM, TransferConfig, frozen_layers
from ds_train.errors import ConfigError

METRIC = "bits_per_byte"
"""What everything is measured in: the same for any tokenizer."""

_FULL: dict[str, Any] = {"adapter": {"method": "full"}}


@dataclass(frozen=True)
class Cell:
    """One arm at one size: an arm of the comparison."""

    arm: str
    amount: int | None
    """Bytes (or documents) of target text; None for all there is."""
    unit: str
    """`bytes` or `samples`."""

    @property
    def size(self) -> str:
        """The amount for people and folders: `20kB`, `500`, `all`."""
        if self.amount is None:
            return "all"
        if self.unit == "samples":
            return str(self.amount)
        for size, name in ((10**6, "MB"), (10**3, "kB")):
            if self.amount % size == 0:
                return f"{self.amount // size}{name}"
        return f"{self.amount}B"

    @property
    def name(self) -> str:
        """Its name in the comparison, and its folder."""
        return f"{self.arm}-{self.size}"


@dataclass(frozen=True)
class Design:
    """What is measured."""

    base: RunConfig
    transfer: TransferConfig
    cells: list[Cell]
    """Size by size, the arms in the recipe's order."""


def plan_transfer(recipe: str | Path, overrides: Sequence[str]) -> tuple[Comparison, Design]:
    """The comparison of a recipe's transfer section; without torch, and nothing is written.

    Raises:
        ConfigError: with every fault of every arm.
    """
    base = load_recipe(recipe, overrides)
    if base.transfer is None:
        raise ConfigError(
            f"{recipe}: has no section transfer, which says what is measured, e.g. "
            "transfer: {arms: [warm, random], sizes: [20 kB, 100 kB]}."
        )
    if faults := _missing(base):
        raise ConfigError(faults)
    design = Design(base, base.transfer, _cells(base.transfer))
    settings = {
        "arms": {cell.name: arm_settings(base, cell) for cell in design.cells},
        "seeds": base.transfer.seeds,
        "baseline": _baseline(design.cells).name,
        "metrics": [METRIC],
        "learning_rates": _rates(base.transfer, design.cells),
        "parallel": base.transfer.parallel,
    }
    # the model before any step is one of those that early stopping chooses from
    laid_over = [*overrides, "evaluate.at_start=true", f"compare={json.dumps(settings)}"]
    return plan_comparison(recipe, laid_over), design


def _missing(base: RunConfig) -> list[str]:
    """What a recipe must have for its numbers to mean something."""
    faults, data = [], base.data
    if data.dev is None:
        faults.append(
            "transfer without data.dev: learning rates and lengths would be chosen on the text "
            "that is reported; set data.dev: {fraction: 0.1} or give data.dev.sources."
        )
    if base.train.early_stopping is None:
        faults.append(
            "transfer without train.early_stopping: small data is over-fitted within a few epochs, "
            "and arms would be compared by how much; set train.early_stopping: {patience: 3} and "
            "evaluate.every."
        )
    if data.limit is not None:
        faults.append("data.limit with transfer: transfer.sizes says it; remove data.limit.")
    names = [source.shown_name for source in data.train]
    if len(set(names)) < len(names):
        faults.append("data.train: two sources have the same name; give each a name of its own.")
    assert base.transfer is not None
    return [*faults, *_unfit(base.transfer), *_replay_faults(base.transfer, base.data)]


def _unfit(transfer: TransferConfig) -> Iterator[str]:
    """Settings of arms that are not there, and arms without the settings that they want."""
    if transfer.random_sizes and RANDOM not in transfer.arms:
        yield f"transfer.random_sizes: {RANDOM} is not among transfer.arms; add it."
    if transfer.random_sizes and not (transfer.sizes or transfer.samples):
        yield "transfer.random_sizes without sizes: all data is taken, and there is no more."
    for arm, example in (
        ("replay", "{sources: [{path: stories.txt}], share: 0.1}"),
        ("l2_sp", "0.01"),
    ):
        given = getattr(transfer, arm)
        if arm in transfer.arms and given is None and not transfer.arms[arm]:
            yield f"transfer.arms has {arm}, which wants transfer.{arm}, e.g. {example}."
        if given is not None and arm not in transfer.arms:
            yield f"transfer.{arm}: {arm} is not among transfer.arms; add it."


def _replay_faults(transfer: TransferConfig, data: DataConfig) -> Iterator[str]:
    if transfer.replay is None:
        return
    replayed = {_files(one) for one in transfer.replay.sources}
    if shared := [one for one in transfer.source if _files(one) in replayed]:
        yield (
            f"transfer.replay and transfer.source both have {shared[0].shown_name}: what is "
            "trained on says nothing about forgetting; hold some of it out."
        )
    if data.mixture is not None:
        yield (
            "transfer.replay with data.mixture: the arm replay makes a mixture of its own; remove "
            "one of them."
        )


def _files(source: SourceConfig) -> str:
    return json.dumps([source.path, source.subset, source.split])


def _cells(transfer: TransferConfig) -> list[Cell]:
    unit = "samples" if transfer.samples else "bytes"
    sizes: list[int | None] = [*sorted(set(transfer.samples or transfer.sizes))] or [None]
    cells = [Cell(arm, size, unit) for size in sizes for arm in transfer.arms]
    further = sorted(set(transfer.random_sizes) - set(sizes))
    return cells + [Cell(RANDOM, size, unit) for size in further]


def _baseline(cells: Sequence[Cell]) -> Cell:
    return next((cell for cell in cells if cell.arm == RANDOM), cells[0])


def _rates(transfer: TransferConfig, cells: Sequence[Cell]) -> Any:
    rates = transfer.learning_rates
    if not isinstance(rates, dict):
        return rates
    names = [cell.name for cell in cells]
    if unknown := sorted(set(rates) - {*transfer.arms, *names}):
        raise ConfigError(
            f"transfer.learning_rates.{unknown[0]}: is not one of the arms "
            f"{', '.join(transfer.arms)}, nor one of them at a size ({', '.join(names[:2])}, ...)."
        )
    found = {cell.name: rates.get(cell.name, rates.get(cell.arm)) for cell in cells}
    return {name: grid for name, grid in found.items() if grid is not None}


def arm_settings(base: RunConfig, cell: Cell) -> dict[str, Any]:
    """What an arm lays over the recipe: what its name stands for, its own settings, its size."""
    assert base.transfer is not None
    settings = {**_built_in(base, cell.arm), **base.transfer.arms.get(cell.arm, {})}
    if cell.amount is not None:
        targets = [source.shown_name for source in base.data.train]
        settings["data.limit"] = {cell.unit: cell.amount, "sources": targets}
    return settings


def _built_in(base: RunConfig, arm: str) -> dict[str, Any]:
    transfer, frozen = base.transfer, frozen_layers(arm)
    assert transfer is not None
    if arm == WARM:
        return _FULL
    if arm == RANDOM:
        return {**_FULL, "model.init": "random"}
    if arm in ("lora", "ia3"):
        own = base.adapter.model_dump(mode="json", exclude_unset=True)
        return {"adapter": own if base.adapter.method == arm else {"method": arm}}
    if arm == "head":
        return {"adapter": {"method": "partial", "frozen_layers": "all"}}
    if frozen is not None:
        return {"adapter": {"method": "partial", "frozen_layers": frozen}}
    if arm == "l2_sp" and transfer.l2_sp is not None:
        return {**_FULL, "train.l2_sp": transfer.l2_sp}
    if arm == "replay" and transfer.replay is not None:
        return {**_FULL, **_replayed(base)}
    return {}


def _replayed(base: RunConfig) -> dict[str, Any]:
    """Target sources share their part of the tokens equally, and so do those of the replay."""
    assert base.transfer is not None and base.transfer.replay is not None
    replay, targets = base.transfer.replay, base.data.train
    names = [f"replay-{number}" for number in range(1, len(replay.sources) + 1)]
    weights = {one.shown_name: (1 - replay.share) / len(targets) for one in targets}
    weights |= {name: replay.share / len(names) for name in names}
    sources = [one.model_dump(mode="json", exclude_unset=True) for one in targets]
    sources += [
        {**one.model_dump(mode="json", exclude_unset=True), "name": name}
        for name, one in zip(names, replay.sources, strict=True)
    ]
    return {"data.train": sources, "data.mixture": {"stages": [{"weights": weights}]}}
