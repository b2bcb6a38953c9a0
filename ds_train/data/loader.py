"""Prefetch: the next steps' batches are built by a thread while the current step trains.

Batches are pure functions of the step, so the thread has nothing to get wrong: it can't skip or
repeat a step, and nothing is lost when it is stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from ds_train.data.batch import Batch


def prefetch(
    steps: Iterable[int], build: Callable[[int], list[Batch]], depth: int = 2
) -> Iterator[tuple[int, list[Batch]]]:
    """Yields (step, build(step)) in order, with up to `depth` steps built ahead.

    An exception of `build` is raised at its own step. On a machine with CUDA the batches are
    pinned. Closing the iterator (or leaving it by an exception) ends the thread.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    waiting: deque[tuple[int, Future[list[Batch]]]] = deque()
    try:
        for step in steps:
            waiting.append((step, pool.submit(_build_pinned, build, step)))
            if len(waiting) > depth:
                ready, future = waiting.popleft()
                yield ready, future.result()
        while waiting:
            ready, future = waiting.popleft()
            yield ready, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _build_pinned(build: Callable[[int], list[Batch]], step: int) -> list[Batch]:
    batches = build(step)
    return [batch.pin_memory() for batch in batches] if torch.cuda.is_available() else batches
