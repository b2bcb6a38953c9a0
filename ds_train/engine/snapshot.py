"""Lets a thread read what lies on the device as it stands now, beside the work that goes on."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

import torch


class Snapshot:
    """Made by the thread that computes, entered by the thread that reads.

    On a GPU what is read within is ordered after the work that was queued when this was made, and
    runs on a stream of its own. Nothing may write what is read until then: that is the caller's to
    see to. On a CPU there is nothing to order.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stack = ExitStack()
        self._queued: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._queued = torch.cuda.Event()
            self._queued.record(torch.cuda.current_stream(device))

    def __enter__(self) -> None:
        if self._queued is not None:
            stream = torch.cuda.Stream(self._device)
            stream.wait_event(self._queued)
            self._stack.enter_context(torch.cuda.stream(stream))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
