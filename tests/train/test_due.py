"""What is due after a step: steps, tokens and epochs, whatever the stride."""

from __future__ import annotations

import pytest

from ds_train.train.due import Position, is_due
from ds_train.units import parse_duration


@pytest.mark.parametrize(
    ("every", "due"),
    [
        ("1 step", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("3 steps", [3, 6]),
        ("250 tokens", [3, 5, 8]),
        ("100 tokens", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("1 epoch", [4, 8]),
        ("0.5 epochs", [2, 4, 6, 8]),
    ],
)
def test_due_after(every: str, due: list[int]) -> None:
    at = [Position(step, step * 100, step / 4) for step in range(9)]
    got = [s for s in range(1, 9) if is_due(parse_duration(every), at[s - 1], at[s])]
    assert got == due


def test_never_when_left_out() -> None:
    assert not is_due(None, Position(0, 0, 0.0), Position(8, 800, 2.0))
