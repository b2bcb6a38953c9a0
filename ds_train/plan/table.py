"""A plan as lines for people and as a dictionary for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ds_train.plan.advise import Change
from ds_train.plan.estimate import Estimate
from ds_train.units import format_bytes, format_seconds

Presets = Mapping[str, "Estimate | str"]


def plan_lines(one: Estimate, presets: Presets, choice: tuple[str, str] | None) -> Iterator[str]:
    """All tables of a plan, without the advice on what does not fit."""
    yield from _head(one)
    yield ""
    yield from _memory(one)
    yield ""
    yield from _traffic(one)
    yield ""
    yield from _time_and_disk(one)
    yield ""
    yield from _presets(presets, choice, one)


def _head(one: Estimate) -> Iterator[str]:
    setting, trainable = one.setting, one.setting.trainable
    cluster, shape = setting.cluster, trainable.shape
    share = 100 * trainable.num_trainable / trainable.num_elements
    yield (
        f"model    {shape.model_type}, {trainable.num_elements:,} parameters, "
        f"{trainable.num_trainable:,} of them train ({share:.3g} %)"
    )
    if shape.remark:
        yield f"         {shape.remark}"
    kind = "processes" if cluster.is_cpu else "GPUs"
    size = "" if one.capacity is None else f" with {format_bytes(one.capacity)} each"
    nodes = "1 node" if cluster.nodes == 1 else f"{cluster.nodes} nodes"
    yield f"cluster  {cluster.name}: {nodes} of {cluster.gpus} {kind}{size}"
    yield f"step     {setting.batch}; {one.compute.tokens:,} tokens at most"


def _memory(one: Estimate) -> Iterator[str]:
    setting = one.setting
    device = "process" if setting.cluster.is_cpu else "GPU"
    origin = f"ZeRO stage {setting.stage}"
    yield f"bytes of one {device}, {origin}"
    when = {"always": "", "backward": "backward pass", "reduction": "reduction", "update": "update"}
    for term in one.memory.terms:
        if term.place == "gpu":
            note = ", ".join(part for part in (when[term.phase], term.note) if part)
            yield f"  {term.name:<28}{format_bytes(term.num_bytes):>12}  {note}".rstrip()
    verdict = _verdict(one)
    yield f"  {'peak':<28}{format_bytes(one.memory.peak):>12}  {verdict}"
    yield from _checkpointing(one)
    host = [term for term in one.memory.terms if term.place == "host"]
    if host:
        yield f"bytes of one host ({setting.cluster.gpus} ranks)"
        for term in host:
            size = format_bytes(term.num_bytes * setting.cluster.gpus)
            yield f"  {term.name:<28}{size:>12}  {term.note}".rstrip()
        yield f"  {'peak':<28}{format_bytes(one.host_bytes):>12}"


def _checkpointing(one: Estimate) -> Iterator[str]:
    kept = one.memory.activations
    yield (
        f"  activations: {format_bytes(kept.kept(recompute=True))} with checkpointing, "
        f"{format_bytes(kept.kept(recompute=False))} without"
    )


def _verdict(one: Estimate) -> str:
    if one.capacity is None:
        return "(say --gpu-memory to know whether it fits)"
    share = 100 * one.memory.peak / one.capacity
    return f"{share:.0f} % of {format_bytes(one.capacity)}: {'fits' if one.fits else 'too much'}"


def _traffic(one: Estimate) -> Iterator[str]:
    yield "communication of one step, per rank"
    if not one.collectives:
        yield "  none on one rank"
        if not one.offload_bytes:
            return
    cluster = one.setting.cluster
    for collective in one.collectives:
        bandwidth = cluster.bandwidth(collective.ranks)
        time = "" if bandwidth is None else format_seconds_short(collective.seconds(bandwidth))
        yield (
            f"  {collective.operation:<15}{collective.what:<24}"
            f"{format_bytes(collective.payload):>12} in {collective.calls:,} calls, sends "
            f"{format_bytes(collective.sent)} {time}"
        ).rstrip()
    if one.offload_bytes:
        yield f"  to and from the host                   {format_bytes(one.offload_bytes):>12}"
    if one.nvme_bytes:
        yield f"  read and written on a node's disks       {format_bytes(one.nvme_bytes):>12}"
    seconds = one.communication_seconds
    if seconds is None:
        yield "  seconds: say --intra; between nodes --inter; to offload --host-link, --nvme"
    else:
        yield f"  together {format_seconds_short(seconds)} if nothing overlaps"


def _time_and_disk(one: Estimate) -> Iterator[str]:
    config = one.setting.config
    yield f"compute  {one.compute.flops:.3g} operations a step"
    if one.compute_seconds is not None:
        peak = f"{100 * one.utilisation:.0f} % of the peak"
        yield f"         {format_seconds_short(one.compute_seconds)} at {peak}"
    if one.step_seconds is not None:
        low, high = (format_seconds_short(part) for part in one.step_seconds)
        rate = one.compute.tokens / one.step_seconds[1]
        yield f"step     {low} to {high} (communication hidden, or not): {rate:,.0f} tokens/s"
        if config.train.max_steps is not None:
            whole = config.train.max_steps * one.step_seconds[1]
            yield f"run      {format_seconds(whole)} for {config.train.max_steps:,} steps at most"
    yield (
        f"disk     {format_bytes(one.checkpoint_bytes)} a checkpoint, "
        f"{format_bytes(one.disk_bytes)} for all that the run holds at once"
    )


def _presets(presets: Presets, choice: tuple[str, str] | None, one: Estimate) -> Iterator[str]:
    device = "process" if one.setting.cluster.is_cpu else "GPU"
    yield f"{'preset':<20}{'a ' + device:>12}{'a host':>12}{'sent a step':>13}{'step':>12}  fits"
    for name, found in presets.items():
        if isinstance(found, str):
            yield f"{name:<20}  refused: {found}"
            continue
        seconds = found.step_seconds
        time = "" if seconds is None else format_seconds_short(seconds[1])
        fits = {True: "yes", False: "no", None: "?"}[found.fits]
        host = format_bytes(found.host_bytes) if found.host_bytes else "-"
        yield (
            f"{name:<20}{format_bytes(found.memory.peak):>12}{host:>12}"
            f"{format_bytes(found.sent_bytes):>13}{time:>12}  {fits}"
        )
    if choice is not None:
        yield f"take engine.preset: {choice[0]} ({choice[1]})"


def advice(one: Estimate, choice: tuple[str, str] | None, change: Change | None) -> list[str]:
    """What to do about a run that does not fit, or that shards more than it needs to."""
    if one.fits is False and change is None:
        return [
            "It fits with none of: activation checkpointing, smaller micro-batches, another "
            "preset, GPUs of a node that share rows, rows down to an eighth. Take more or larger "
            "GPUs, or an adapter with model.quantization: nf4."
        ]
    if one.fits is False and change is not None:
        peak = format_bytes(change.estimate.memory.peak)
        return [f"smallest change that fits: {'; '.join(change.settings)} (then {peak} a rank)"]
    if choice is None or one.setting.stage < 3 or choice[0].startswith("zero3"):
        return []
    return [
        f"This recipe shards the weights (ZeRO-3) of a model that fits without: {choice[0]} sends "
        "fewer bytes for the same update."
    ]


def format_seconds_short(seconds: float) -> str:
    """Time of a step for people: '3.2 ms', '1.4 s'."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} us"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else format_seconds(seconds)


def as_dict(one: Estimate) -> dict[str, Any]:
    """Every number of an estimate."""
    memory = one.memory
    return {
        "parameters": one.setting.trainable.num_elements,
        "trainable_parameters": one.setting.trainable.num_trainable,
        "zero_stage": one.setting.stage,
        "world_size": one.setting.world_size,
        "terms": [
            {
                "name": term.name,
                "bytes": term.num_bytes,
                "phase": term.phase,
                "place": term.place,
            }
            for term in memory.terms
        ],
        "peak_bytes": memory.peak,
        "host_bytes": one.host_bytes,
        "capacity_bytes": one.capacity,
        "fits": one.fits,
        "activations_bytes": memory.activations.kept(recompute=False),
        "activations_checkpointed_bytes": memory.activations.kept(recompute=True),
        "collectives": [
            {
                "operation": part.operation,
                "what": part.what,
                "payload_bytes": part.payload,
                "sent_bytes": part.sent,
                "logged_bytes": part.logged,
                "calls": part.calls,
                "ranks": part.ranks,
            }
            for part in one.collectives
        ],
        "communication_seconds": one.communication_seconds,
        "flops": one.compute.flops,
        "tokens": one.compute.tokens,
        "utilisation": one.utilisation,
        "compute_seconds": one.compute_seconds,
        "step_seconds": one.step_seconds,
        "checkpoint_bytes": one.checkpoint_bytes,
        "disk_bytes": one.disk_bytes,
    }
