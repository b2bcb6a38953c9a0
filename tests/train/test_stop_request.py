"""How a rank learns that its run shall save and end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds_train.train.guard import StopRequest

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture
def request_to_stop() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield StopRequest()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals(request_to_stop: StopRequest, number: signal.Signals) -> None:
    assert not request_to_stop.requested
    os.kill(os.getpid(), number)
    assert request_to_stop.requested
    assert request_to_stop.signal_name == number.name


def test_a_file_counts_until_it_is_answered(request_to_stop: StopRequest, tmp_path: Path) -> None:
    file = tmp_path / "stop"
    request_to_stop.watch(file)
    assert not request_to_stop.requested
    file.touch()
    assert request_to_stop.requested
    request_to_stop.answered()
    assert not request_to_stop.requested
    assert not file.exists()
