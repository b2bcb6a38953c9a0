"""What to change so that a run fits, and which preset to take.

The preset: the quickest that fits, and of those that are alike the first. Stage 1 reduces
gradients once a step and keeps whole weights; stage 2 shards gradients and reduces every
micro-batch of a whole model; offloading moves the optimizer over the host link; stage 3 gathers
the weights in every micro-batch, so it is for models that do not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from ds_train.config.run import RunConfig
from ds_train.errors import InputError
from ds_train.plan.cluster import Cluster
from ds_train.plan.estimate import PRESETS, Estimate, estimate, with_preset
from ds_train.plan.rules_sharing import sharing_rules
from ds_train.plan.shapes import ModelShape
from ds_train.plan.trainable import choose
from ds_train.units import format_bytes


@dataclass(frozen=True)
class Change:
    """Settings that make a run fit, and what it takes then."""

    settings: tuple[str, ...]
    estimate: Estimate


def compare_presets(
    config: RunConfig, shape: ModelShape, cluster: Cluster, utilisation: float
) -> dict[str, Estimate | str]:
    """Each preset's estimate, or why the recipe can't run under it."""
    found: dict[str, Estimate | str] = {}
    trainable = choose(shape, config.adapter)
    for preset in PRESETS:
        changed = with_preset(config, preset)
        try:
            found[preset] = estimate(changed, shape, cluster, utilisation, trainable)
        except InputError as error:
            found[preset] = error.faults[0]
    return found


def choose_preset(presets: dict[str, Estimate | str]) -> tuple[str, str] | None:
    """Name and reason of the one to take; None where none fits or memory is not known."""
    possible = {name: one for name, one in presets.items() if isinstance(one, Estimate)}
    fitting = [name for name, one in possible.items() if one.fits]
    if not fitting:
        return None
    adafactor = next(iter(possible.values())).setting.config.train.optim == "adafactor"
    order = [name for name in fitting if name != "zero0"]  # it adds gradients up in 16 bits
    if adafactor and "zero0" in fitting:
        return "zero0", _reason("zero0", possible)
    name = _quickest({name: possible[name] for name in order or fitting})
    return name, _reason(name, possible)


def _quickest(fitting: dict[str, Estimate]) -> str:
    """The first that is within 2 % of the quickest whose time is known; else the first."""
    times = {name: one.step_seconds for name, one in fitting.items()}
    known = {name: time[1] for name, time in times.items() if time is not None}
    if not known:
        return next(iter(fitting))
    return next(name for name, time in known.items() if time <= 1.02 * min(known.values()))


def _reason(name: str, possible: dict[str, Estimate]) -> str:
    chosen = possible[name]
    peak = f"it fits ({format_bytes(chosen.memory.peak)} of {format_bytes(chosen.capacity or 0)})"
    order = [one for one in PRESETS if one in possible]
    lower = [one for one in order[: order.index(name)] if one != "zero0"]
    if lower and not possible[lower[-1]].fits:
        last = lower[-1]
        peak += f", {last} does not ({_too_much(possible[last])})"
    parts = [peak]
    stage3 = possible.get("zero3")
    if chosen.setting.stage < 3 and stage3 is not None and chosen.setting.world_size > 1:
        parts.append(
            f"zero3 would send {format_bytes(stage3.sent_bytes)} a step instead of "
            f"{format_bytes(chosen.sent_bytes)}"
        )
    if chosen.setting.world_size == 1 and chosen.setting.offloads("optimizer") == "none":
        parts.append("on one rank the stages differ in nothing but their buffers")
    return "; ".join(parts)


def _too_much(one: Estimate) -> str:
    if one.memory.peak > (one.capacity or 0):
        return format_bytes(one.memory.peak)
    return f"{format_bytes(one.host_bytes)} of a host"


def smallest_change(
    config: RunConfig, shape: ModelShape, cluster: Cluster, utilisation: float
) -> Change | None:
    """The fewest settings that make it fit, and of these the fastest; None where nothing does.

    Tried are checkpointing of activations, smaller micro-batches (of the same global batch), the
    presets that need less memory, ranks that share rows, and only where none of these is enough
    shorter rows, which train something else.
    """
    best: dict[int, list[tuple[float, Change]]] = {}
    trainable = choose(shape, config.adapter)
    for number, (settings, changed) in enumerate(_variants(config, cluster)):
        shorter = changed.data.max_length < config.data.max_length
        if best and (shorter or min(best) <= len(settings) - 1):
            break
        try:
            found = estimate(changed, shape, cluster, utilisation, trainable)
        except InputError:
            continue
        if found.fits:
            seconds = found.step_seconds
            cost = seconds[1] if seconds is not None else float(number)
            best.setdefault(len(settings), []).append((cost, Change(settings, found)))
    if not best:
        return None
    return min(best[min(best)], key=lambda one: one[0])[1]


def _variants(config: RunConfig, cluster: Cluster) -> Iterator[tuple[tuple[str, ...], RunConfig]]:
    """Changed recipes with what was changed, those with few changes first."""
    engine = [("", config.engine)] + [
        (f"engine.preset: {name}", with_preset(config, name).engine)
        for name in PRESETS[1:]
        if name != config.engine.preset
    ]
    again = [("", config.model.gradient_checkpointing)]
    if not config.model.gradient_checkpointing:
        again.append(("model.gradient_checkpointing: true", True))
    every: list[tuple[tuple[str, ...], RunConfig]] = []
    lengths = [config.data.max_length // 2**power for power in range(4)]
    for one, two, three, length in product(engine, again, _micro(config, cluster), lengths):
        update: dict[str, Any] = {
            "engine": one[1],
            "model": config.model.model_copy(update={"gradient_checkpointing": two[1]}),
            "train": config.train.model_copy(update=three[1]),
        }
        texts = [text for text in (one[0], two[0], three[0]) if text]
        if length != config.data.max_length:
            update["data"] = config.data.model_copy(update={"max_length": length})
            texts.append(f"data.max_length: {length}")
        if texts:
            every.append((tuple(texts), config.model_copy(update=update)))
    shortened = [one for one in every if any("max_length" in text for text in one[0])]
    others = [one for one in every if one not in shortened] + list(_sharing(config, cluster))
    yield from sorted(others, key=lambda one: len(one[0]))
    yield from sorted(shortened, key=lambda one: (len(one[0]), -one[1].data.max_length))


def _sharing(config: RunConfig, cluster: Cluster) -> Iterator[tuple[tuple[str, ...], RunConfig]]:
    """Rows that neighbours within a node share, which changes nothing of what is trained."""
    sizes = [size for size in (2, 4, 8) if cluster.gpus % size == 0]
    for size in sizes:
        if size <= config.engine.sequence_parallel_size:
            continue
        engine = config.engine.model_copy(update={"sequence_parallel_size": size})
        for text, update in _micro(config, cluster):
            train = config.train.model_copy(update=update)
            changed = config.model_copy(update={"engine": engine, "train": train})
            if not list(sharing_rules(changed)):
                texts = (f"engine.sequence_parallel_size: {size}", text)
                yield tuple(one for one in texts if one), changed


def _micro(config: RunConfig, cluster: Cluster) -> list[tuple[str, dict[str, Any]]]:
    """Smaller micro-batches that leave the rows of a step as they are."""
    train = config.train
    micro = train.per_device_train_batch_size
    found: list[tuple[str, dict[str, Any]]] = [("", {})]
    for size in [one for one in range(micro - 1, 0, -1) if micro % one == 0]:
        update: dict[str, Any] = {"per_device_train_batch_size": size}
        text = f"train.per_device_train_batch_size: {size}"
        if train.global_batch_size is None:
            steps = (train.gradient_accumulation_steps or 1) * micro // size
            update["gradient_accumulation_steps"] = steps
            text += f" with gradient_accumulation_steps: {steps}"
        found.append((text, update))
    return found
