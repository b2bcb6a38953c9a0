"""Rows that can't grow as the recipe says, word for word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ds_train.config.run import RunConfig
from ds_train.plan.rules import check_rules

PROMPT = {"adapter": {"method": "prompt_tuning"}, "data": {"packing": False, "max_length": 512}}

REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"start": 64, "end": 1024},
        {},
        "curriculum.seq_len.end = 1,024: no row is longer than data.max_length = 512; lower the "
        "one or raise the other.",
    ),
    (
        {"start": 512},
        {},
        "curriculum.seq_len.start = 512: must be less than data.max_length = 512, up to which rows "
        "grow; a lower start, or no seq_len.",
    ),
    (
        {"start": 256, "end": 128},
        {},
        "curriculum.seq_len.start = 256: must be less than curriculum.seq_len.end = 128, up to "
        "which rows grow; a lower start, or no seq_len.",
    ),
    (
        {"start": 500, "step": 64},
        {},
        "curriculum.seq_len.step = 64: from 500 to 512 there is no such step; 12 or less.",
    ),
    (
        {"start": 1},
        {},
        "curriculum.seq_len.start = 1: a row needs 2 tokens, one to read and one to predict.",
    ),
    (
        {"start": 64, "end_at": "200 steps"},
        {},
        'curriculum.seq_len.end_at = "200 steps": lies after the end of the run, which '
        "train.max_steps = 100 sets; make one of them fit.",
    ),
    (
        {"start": 64, "mode": "window"},
        PROMPT,
        "curriculum.seq_len.mode = window with adapter.method = prompt_tuning: windows are made by "
        "positions that begin anew, and PEFT numbers them itself after virtual tokens; set mode: "
        "reshape or truncate.",
    ),
]


@pytest.mark.parametrize(("seq_len", "sections", "message"), REFUSED)
def test_refused(
    make: Callable[..., RunConfig],
    seq_len: dict[str, Any],
    sections: dict[str, Any],
    message: str,
) -> None:
    sections = {"data": {"max_length": 512}, **sections}
    assert check_rules(make(curriculum={"seq_len": seq_len}, **sections), 2) == [message]


@pytest.mark.parametrize(
    ("seq_len", "sections"),
    [
        ({"start": 64}, {}),
        ({"start": 2, "end": 512, "step": 510}, {}),
        ({"start": 64, "end_at": "100 steps", "mode": "window"}, {}),
        ({"start": 64, "mode": "truncate"}, PROMPT),
        ({"start": 64, "mode": "window"}, {"data": {"packing": False, "max_length": 512}}),
    ],
)
def test_allowed(
    make: Callable[..., RunConfig], seq_len: dict[str, Any], sections: dict[str, Any]
) -> None:
    sections = {"data": {"max_length": 512}, **sections}
    assert check_rules(make(curriculum={"seq_len": seq_len}, **sections), 2) == []
