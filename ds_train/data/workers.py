"""Work that several processes share: tasks go out, results come back in the order of the tasks.

Only a few tasks are under way at any time, so memory does not grow with the data. A fault found
in a worker reaches the user as the same DataError.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from ds_train.errors import DataError


class Worker(Protocol):
    """What a process makes once and uses for all its tasks."""

    def run(self, *task: Any) -> Any:
        """The result of one task."""


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    make: Callable[..., Worker],
    arguments: tuple[Any, ...],
    tasks: Iterable[tuple[Any, ...]],
    num_workers: int,
    *,
    doing: str,
) -> Iterator[Any]:
    """`make(*arguments).run(*task)` of every task, in order; one worker is this process itself.

    `make`, `arguments`, tasks and results travel pickled. `doing` says in a message what the
    processes do ("tokenising").
    """
    if num_workers == 1:
        worker = make(*arguments)
        for task in tasks:
            yield worker.run(*task)
        return
    # Spawned, not forked: the parent has imported torch, whose threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    start = (make, arguments)
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=start)
    under_way: deque[Future[Any]] = deque()
    try:
        for task in tasks:
            under_way.append(pool.submit(_run_in_worker, task))
            if len(under_way) > 2 * num_workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"data: a {doing} process was killed, most likely for want of memory; "
            f"try fewer of them: data.num_workers={max(1, num_workers // 2)}."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: Worker | None = None
"""What this worker process uses, made once by _start_worker."""


def _start_worker(make: Callable[..., Worker], arguments: tuple[Any, ...]) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core per worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker = make(*arguments)


def _exit_with_parent() -> None:
    """Ends this worker when its parent is killed; a pool's worker would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(task: tuple[Any, ...]) -> Any:
    if _worker is None:
        raise RuntimeError("the worker was not started by _start_worker")
    return _worker.run(*task)
