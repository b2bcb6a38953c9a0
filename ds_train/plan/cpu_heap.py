"""What malloc keeps of freed memory on a CPU. A GPU run has none of it.

glibc (seen with 2.36) takes blocks of up to 32 MiB from a heap once blocks of that size have been
freed. torch asks for them aligned to 64 bytes, and a freed block is then too short for the next one
of its size by what the alignment takes, so that the heap grows by holes. Blocks that come from the
system each time (MALLOC_MMAP_THRESHOLD_) leave none, and cost time; jemalloc reuses them and costs
none (benchmarks/results/plan_accuracy.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from ds_train.plan.activations import Activations
from ds_train.plan.setting import Setting
from ds_train.plan.zero3_trace import Gathers

OF_ACTIVATIONS, OF_GATHERED = 1.5, 1.6
"""Shares that the heap keeps; fitted to the 28 runs of benchmarks/plan_accuracy.py, not derived.
Recomputation allocates and frees whole layers one after the other, which leaves as many holes."""
_FROM_HEAP = 32 << 20
"""Bytes. Larger blocks come from the system and go back to it."""
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144"}
"""For the environment of a measurement in which freed memory shall not be resident."""
_REUSING = ("jemalloc", "tcmalloc", "mimalloc")
"""Allocators that reuse such blocks: measured with the first, taken for granted of the others."""
_SMALL = 1 << 20
"""Bytes. A fixed threshold above it leaves blocks of activations in the heap."""


def heap_bytes(setting: Setting, kept: Activations, gathers: Gathers | None) -> int:
    """What is resident beside a plan's other terms; 0 where freed memory is given back."""
    if not setting.cluster.keeps_freed:
        return 0
    shape, width, total = setting.trainable.shape, setting.width, 0.0
    if width * setting.tokens * shape.hidden <= _FROM_HEAP:
        total += OF_ACTIVATIONS * kept.at_the_loss(recompute=False)
    layers = [one for one in setting.trainable.parameters if one.module.layer is not None]
    largest = max((one.num_elements for one in layers), default=0)
    if gathers is not None and width * largest <= _FROM_HEAP:
        total += OF_GATHERED * width * gathers.peak_elements
    return round(total)


def keeps_freed_memory(environment: Mapping[str, str]) -> bool:
    """Whether processes that are started with these variables keep what they free."""
    preloaded = environment.get("LD_PRELOAD", "")
    if any(name in preloaded for name in _REUSING):
        return False
    threshold = environment.get("MALLOC_MMAP_THRESHOLD_", "")
    return not (threshold.isdecimal() and int(threshold) <= _SMALL)
