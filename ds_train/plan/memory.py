"""Bytes of one rank, term by term, as ds-train and DeepSpeed 0.19 allocate them.

With N parameters of which T train, n ranks, w bytes an element (Rajbhandari et al., "ZeRO", SC
2020, section 3, with what a frozen base, an fp32 accumulation and DeepSpeed's buffers change):

    weights        w N, under ZeRO-3 w N / n and whole what is too small to be sharded
    fp32 masters   4 T / n of what trains, also where the model is fp32 (stage 0: 4 T in 16 bits)
    optimizer      Adam's two moments, 8 T / n; Adafactor's sums of rows and columns
    in bf16        both half as large with bf16_optimizer_states
    gradients      what waits between micro-batches, see `_waiting_gradients`

The peak is that of the backward pass, of the reduction after it or of the update, whichever is the
highest: activations are gone when the temporaries of the others come. Within the backward pass too
one thing is gone when the other comes (`backward_peak.py`). On a CPU the process itself counts, and
what the libraries below torch keep (`cpu_libraries.py`, `cpu_heap.py`). Compared with real runs in
`benchmarks/results/plan_accuracy.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ds_train.plan.activations import Activations, activations
from ds_train.plan.backward_peak import highest_moment
from ds_train.plan.cpu_heap import heap_bytes
from ds_train.plan.cpu_libraries import PROCESS_BYTES, library_bytes
from ds_train.plan.disk import state_bytes
from ds_train.plan.loss_memory import loss_memory
from ds_train.plan.setting import Setting
from ds_train.plan.zero3_trace import Gathers, play

Phase = Literal["always", "backward", "reduction", "update"]
Place = Literal["gpu", "host"]

_QUANTISED = {"nf4": 4.127 / 8, "int8": 1.0}
"""Bytes of a weight: 4 bits and doubly quantised constants (QLoRA, arXiv 2305.14314, section 3)."""
FRAGMENTATION = 0.05
"""Allowance of the caching allocator on a GPU, a share of the rest; not measured here."""


@dataclass(frozen=True)
class Term:
    """One line of the table."""

    name: str
    num_bytes: int
    phase: Phase = "always"
    place: Place = "gpu"
    note: str = ""


@dataclass(frozen=True)
class Memory:
    """All terms of a rank."""

    terms: tuple[Term, ...]
    activations: Activations
    gathers: Gathers | None

    def total(self, phase: Phase, place: Place = "gpu") -> int:
        """Sum of a phase's own terms."""
        return sum(
            term.num_bytes for term in self.terms if term.phase == phase and term.place == place
        )

    @property
    def peak(self) -> int:
        """The most that a rank takes of its device."""
        return self._highest("gpu")

    @property
    def host(self) -> int:
        """The most that a rank takes of its host."""
        return self._highest("host")

    def _highest(self, place: Place) -> int:
        phases = [self.total(phase, place) for phase in ("backward", "reduction", "update")]
        return self.total("always", place) + max(phases)


def memory_of(setting: Setting) -> Memory:
    """Terms of one rank in a step that is not the first."""
    accountant = _Accountant(setting)
    terms, kept, gathers = list(accountant.terms()), accountant.activations, accountant.gathers
    if setting.cluster.is_cpu:  # host and device are one
        freed = heap_bytes(setting, kept, gathers)
        terms = [
            *(replace(term, place="gpu") for term in terms),
            Term("kept by oneDNN, MKL", library_bytes(setting)),
            Term("freed, kept by malloc", freed, note="none with jemalloc preloaded"),
            Term("process: Python, torch, DeepSpeed", PROCESS_BYTES),
        ]
    else:
        allowance = round(FRAGMENTATION * Memory(tuple(terms), kept, gathers).peak)
        terms.append(Term("fragmentation", allowance, note=f"{FRAGMENTATION:.0%} of the rest"))
        terms.append(Term("CUDA context, NCCL", setting.cluster.reserved))
    return Memory(tuple(term for term in terms if term.num_bytes), kept, gathers)


class _Accountant:
    """Knows sizes; each method is one kind of term."""

    def __init__(self, setting: Setting) -> None:
        self.s = setting
        self.n = setting.world_size
        self.trained = setting.trainable.num_trainable
        self.activations = activations(
            setting.trainable,
            setting.config,
            setting.rows,
            setting.length,
            on_cpu=setting.cluster.is_cpu,
        )

    @cached_property
    def gathers(self) -> Gathers | None:
        """Stage 3 only."""
        if self.s.stage < 3:
            return None
        recompute = self.s.config.model.gradient_checkpointing
        return play(self.s.trainable, self.s.zero, recompute=recompute)

    def terms(self) -> Iterator[Term]:
        """All of them; empty ones too."""
        yield from self._weights()
        yield from self._optimizer()
        yield from self._waiting_gradients()
        yield from self._gradients_on_their_way()
        yield from self._forward_and_backward()
        yield from self._update()

    def _shard(self, elements: int) -> int:
        return math.ceil(elements / self.n)

    def _weights(self) -> Iterator[Term]:
        frozen = self.s.trainable.num_elements - self.trained
        w, place = self.s.width, self._param_place()
        if self.s.stage == 3 and self.gathers is not None:
            yield Term("weights, frozen", w * self._shard(frozen), place=place)
            yield Term("weights, trained", w * self._shard(self.trained), place=place)
            yield Term("weights, never sharded", w * self.gathers.persistent_elements)
            return
        kind = self.s.config.model.quantization
        if kind == "none":
            yield Term("weights, frozen", w * frozen)
        else:
            packed = sum(
                one.num_elements
                for one in self.s.trainable.parameters
                if not one.trains and one.module.is_linear and one.module != self._output
            )
            yield Term("weights, quantised", round(_QUANTISED[kind] * packed), note=kind)
            yield Term("weights, frozen", w * (frozen - packed))
        yield Term("weights, trained", w * self.trained)

    @property
    def _output(self) -> object:
        return self.s.trainable.shape.output

    def _param_place(self) -> Place:
        return "host" if self.s.offloads("param") in ("cpu", "nvme") else "gpu"

    def _optimizer(self) -> Iterator[Term]:
        place: Place = "host" if self.s.offloads("optimizer") in ("cpu", "nvme") else "gpu"
        on_disk = self.s.offloads("optimizer") == "nvme"
        note = "a piece; the rest is on NVMe" if on_disk else ""
        own = self.trained if self.s.stage == 0 else self._shard(self.trained)
        width = self.s.master_width
        masters = 0 if self.s.stage == 0 and self.s.width == 4 else width * own
        states = 2 * self.s.moment_width * own
        if self.s.config.train.optim == "adafactor":
            states = 4 * sum(
                sum(one.shape) if len(one.shape) > 1 else one.num_elements
                for one in self.s.trainable.trained
            )
        if on_disk:
            buffered = min(own, int(self.s.zero["sub_group_size"]))
            masters, states = 4 * buffered, 8 * buffered
        yield Term(
            "fp32 masters" if width == 4 else "bf16 masters", masters, place=place, note=note
        )
        yield Term("optimizer state", states, place=place, note=note)
        if self.s.config.train.l2_sp is not None:
            yield Term("L2-SP: first weights", self.s.width * own, place=place)
        if self.s.config.checkpoint.background:
            copied = self._shard(state_bytes(self.s.config, self.s.trainable)) * width // 4
            yield Term("checkpoint, being written", copied, place="host")

    def _waiting_gradients(self) -> Iterator[Term]:
        """Of the micro-batches before, whole or one rank's part.

        Stage 0 keeps whole gradients in the model's dtype. Stage 1 keeps them whole too, in fp32
        where the model is in 16 bits. Stages 2 and 3 keep a part of fp32, and whole ones as well
        where the reduction waits for the end of the step.
        """
        stage, trained = self.s.stage, self.trained
        place: Place = "host" if self.s.offloads("optimizer") != "none" and stage > 1 else "gpu"
        if stage == 0:
            yield Term("gradients", self.s.width * trained)
        elif stage == 1:
            yield Term("gradients", 4 * trained)
        else:
            yield Term("gradients, own part", 4 * self._shard(trained), place=place)
            if self.s.coalesces:
                yield Term("gradients, waiting", self.s.width * trained, "backward")

    def _gradients_on_their_way(self) -> Iterator[Term]:
        """DeepSpeed's buckets have their size whatever trains; a CPU touches what it needs."""
        bucket = int(self.s.zero["reduce_bucket_size"])
        if self.s.cluster.is_cpu:
            bucket = min(bucket, self.trained)
        copies = 2 if self.s.zero["overlap_comm"] and not self.s.cluster.is_cpu else 1
        stage, comm, on_cpu = self.s.stage, self.s.comm_width, self.s.cluster.is_cpu
        held = 4 if stage == 1 else self.s.width
        at_once = stage < 2 or self.s.coalesces
        # a GPU has the whole bucket from the start, a CPU the pages that gradients have filled;
        # whole gradients of fp32 that waited move into it
        phase: Phase = "reduction" if at_once or on_cpu else "backward"
        if stage in (1, 2) and not (on_cpu and at_once and self.s.width == 4):
            yield Term("communication buckets", copies * bucket * held, phase)
        elif stage == 3:
            yield Term("communication buckets", bucket * held)
        # stages 0 to 2 flatten what they reduce
        moved = min(bucket, self.trained) * comm if stage < 3 or comm != held else 0
        yield Term("gradients, being reduced", moved, phase)

    def _forward_and_backward(self) -> Iterator[Term]:
        loss = loss_memory(self.s)
        yield Term("loss, working memory that stays", loss.stays)
        for name, size in highest_moment(self.s, self.activations, loss):
            yield Term(name, size, "backward")
        if self.gathers is not None:
            live = self.gathers.peak_elements
            yield Term("weights, gathered", self.s.width * live, "backward")
            ahead = min(int(self.s.zero["stage3_prefetch_bucket_size"]), live)
            yield Term("weights, being gathered", self.s.width * ahead, "backward")

    def _update(self) -> Iterator[Term]:
        own = self.trained if self.s.stage == 0 else self._shard(self.trained)
        if self.s.stage == 0:
            yield Term("update: fp32 gradients", 4 * own if self.s.width == 2 else 0, "update")
        elif self.s.stage < 3:
            yield Term("update: flat gradients", self.s.master_width * own, "update")
        else:
            piece = min(own, int(self.s.zero["sub_group_size"]))
            yield Term("update: flat gradients", self.s.master_width * piece, "update")
