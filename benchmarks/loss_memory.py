"""Peak memory of one peer on a CPU: high-water mark of the resident set, a process for each case.

    extra = VmHWM during the first call - VmRSS before it - bytes of the gradients that it returns
    kept  = VmRSS after everything it returned is freed - VmRSS before

So the working memory that a process keeps for its next calls counts. Code was loaded before, by a
problem of a few numbers; a peer that compiles for each shape did so in a whole call, so that what
that left behind is not seen. The mark is reset through /proc/self/clear_refs. Every
allocation of a page and more goes to the system and back at once (MALLOC_MMAP_THRESHOLD_), so that
no reuse hides one. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from loss_inputs import DTYPES, Case, Inputs
from loss_peers import LossFunction, Peer, peer_named
from loss_rounds import Call

_PATTERN_ROWS = 997
_FEW_NUMBERS = (8, 32, 64)
_STATUS = Path("/proc/self/status")


def measured_peaks(
    peer: Peer, cases: list[Case], timeout_seconds: float
) -> list[tuple[int, int] | str]:
    """(extra bytes, bytes kept after the call) of each case, or a reason."""
    if not _STATUS.exists():
        return ["measured on Linux only"] * len(cases)
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="0")
    return [_measured_peak(peer, case, timeout_seconds) for case in cases]


def _measured_peak(peer: Peer, case: Case, timeout_seconds: float) -> tuple[int, int] | str:
    # children come from a server that has imported everything and computed nothing
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loss_memory_preload"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, peer.name, case), daemon=True)
    process.start()
    send.close()
    result: tuple[int, int] | str
    try:
        if receive.poll(timeout_seconds):
            result = receive.recv()
        else:
            result = f"took longer than {timeout_seconds:.0f} s"
    except EOFError:
        result = "the process ended early"
    process.kill()
    process.join()
    return result


def _child(send: Connection, name: str, case: Case) -> None:
    try:
        send.send(_peak(peer_named(name), case, _inputs(case)))
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
    # code is loaded, and whatever is made once, by a problem of a few numbers
    few = call if peer.compiles else _small_call(loss, case)
    few()
    few.clear()
    base = _settled()
    Path("/proc/self/clear_refs").write_text("5")
    call()
    peak = _status_bytes("VmHWM")
    gradients = [x.grad for x in (call.hidden, call.weight) if x.grad is not None]
    returned = sum(x.numel() * x.element_size() for x in gradients)
    del gradients
    call.clear()
    return max(0, peak - base - returned), max(0, _settled() - base)


def _small_call(loss: LossFunction, case: Case) -> Call:
    tokens, dim, vocab = _FEW_NUMBERS
    small = replace(case, tokens=tokens, dim=dim, vocab=vocab)
    return Call(loss, small, _inputs(small))


def _settled() -> int:
    """Resident bytes once everything free has gone back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a libc without it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status_bytes("VmRSS")


def _status_bytes(key: str) -> int:
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(key + ":"))
    return int(line.split()[1]) * 1024
