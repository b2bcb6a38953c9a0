"""Peak memory of one peer on a CPU: high-water mark of the resident set, in a process of its own.

    extra = VmHWM during the second call - VmRSS before it - bytes of the gradients that it returns

Inputs and what the first call left behind (code, tables, caches) are in both and cancel; the kernel
resets the mark through /proc/self/clear_refs. Every allocation of a page and more goes to the
system and back at once (MALLOC_MMAP_THRESHOLD_), so that no reuse hides one. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from loss_inputs import DTYPES, Case, Inputs
from loss_peers import Peer, peer_named
from loss_rounds import Call

_PATTERN_ROWS = 997
_STATUS = Path("/proc/self/status")


def measured_peaks(
    peer: Peer, cases: list[Case], timeout_seconds: float
) -> list[tuple[int, int] | str]:
    """(extra bytes, bytes kept between calls) of each case of one shape and dtype, or a reason."""
    if not _STATUS.exists():
        return ["measured on Linux only"] * len(cases)
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="0")
    # children come from a server that has imported everything and computed nothing
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loss_memory_preload"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, peer.name, cases), daemon=True)
    process.start()
    send.close()
    results: list[tuple[int, int] | str] = []
    while len(results) < len(cases):
        try:
            if not receive.poll(timeout_seconds):
                results.append(f"took longer than {timeout_seconds:.0f} s")
                break
            results.append(receive.recv())
        except EOFError:
            results.append("the process ended early")
            break
    process.kill()
    process.join()
    return results + results[-1:] * (len(cases) - len(results))


def _child(send: Connection, name: str, cases: list[Case]) -> None:
    peer = peer_named(name)
    inputs = _inputs(cases[0])
    for case in cases:
        try:
            send.send(_peak(peer, case, inputs))
        except Exception as error:  # noqa: BLE001 (any failure is this case's reason)
            send.send(f"{type(error).__name__}: {error}"[:120])


def _inputs(case: Case) -> Inputs:
    """Inputs of the right sizes; a repeated pattern, as memory does not depend on values."""
    draw = torch.Generator().manual_seed(0)
    dtype = DTYPES[case.dtype]
    pattern = torch.randn(_PATTERN_ROWS, case.dim, generator=draw).to(dtype)
    hidden = torch.randn(case.tokens, case.dim, generator=draw).to(dtype) / case.dim**0.5
    weight = pattern.repeat(-(-case.vocab // _PATTERN_ROWS), 1)[: case.vocab].clone()
    labels = torch.randint(case.vocab, (case.tokens,), generator=draw)
    return Inputs(hidden, weight, labels)


def _peak(peer: Peer, case: Case, inputs: Inputs) -> tuple[int, int]:
    loss = peer.make(case, inputs.hidden.device)
    call = Call(loss, case, inputs)
    # code is loaded by a few tokens; what the first whole call leaves behind is what is kept
    few = call if peer.compiles else Call(loss, case, inputs, max(1, case.tokens // 64))
    few()
    few.clear()
    before = _settled()
    call()
    call.clear()
    base = _settled()
    Path("/proc/self/clear_refs").write_text("5")
    call()
    peak = _status_bytes("VmHWM")
    gradients = [x.grad for x in (call.hidden, call.weight) if x.grad is not None]
    returned = sum(x.numel() * x.element_size() for x in gradients)
    call.clear()
    return max(0, peak - base - returned), max(0, base - before)


def _settled() -> int:
    """Resident bytes once everything free has gone back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a libc without it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status_bytes("VmRSS")


def _status_bytes(key: str) -> int:
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(key + ":"))
    return int(line.split()[1]) * 1024
