"""Lets a thread read what lies on the device as it stands now, beside the work that goes on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


class Snapshot:
    """Made by the thread that computes, entered by the thread that reads.

    On a GPU what is read within `reading` is ordered after the work that was queued when this was
    made, and runs on a stream of its own. Nothing may write what is read until then: that is the
    caller's to see to. On a CPU there is nothing to order.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._queued: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._queued = torch.cuda.Event()
            self._queued.record(torch.cuda.current_stream(device))

    def reading(self) -> AbstractContextManager[Any]:
        """Around the reads."""
        if self._queued is None:
            return nullcontext()
        stream = torch.cuda.Stream(self._device)
        stream.wait_event(self._queued)
        return torch.cuda.stream(stream)
