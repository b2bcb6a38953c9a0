"""YAML's traps: numbers, booleans, keys, duplicates, places of faults."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_train.config.yaml_strict import dotted, dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.0e-3", 0.001),
        ("3e5", 3e5),
        (".5", 0.5),
        ("1_000", 1000),
        ("-7", -7),
        ("0x10", 16),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("4k", "4k"),
        ("2^12", "2^12"),
        ("'1e-3'", "1e-3"),
        ("null", None),
        ("~", None),
        ("", None),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    document = parse_yaml(f"key: {text}\n", "r.yaml")
    assert document.faults == []
    assert document.value == {"key": value}
    assert type(document.value["key"]) is type(value)


def test_keys_are_text_and_have_lines() -> None:
    document = parse_yaml("labels:\n  0: bad\n  no: worse\nlist:\n- a: 1\n", "r.yaml")
    assert document.value == {"labels": {"0": "bad", "no": "worse"}, "list": [{"a": 1}]}
    assert document.lines[("labels", "no")] == 3
    assert document.lines[("list", 0, "a")] == 5


def test_duplicate_keys_are_all_reported() -> None:
    document = parse_yaml("a: 1\nb: {x: 1, x: 2}\na: 2\n", "r.yaml")
    assert document.faults == [
        "r.yaml, line 2: b.x is written twice (first on line 2); remove one of them.",
        "r.yaml, line 3: a is written twice (first on line 1); remove one of them.",
    ]


def test_anchors_and_merge_keys_work() -> None:
    document = parse_yaml("x: &x {p: 1, q: 2}\ny: {<<: *x, q: 3}\n", "r.yaml")
    assert document.faults == []
    assert document.value["y"] == {"p": 1, "q": 3}


def test_python_tags_are_refused() -> None:
    document = parse_yaml("a: !!python/object/apply:os.system [ls]\n", "r.yaml")
    assert document.value is None
    assert "could not determine a constructor" in document.faults[0]


def test_dotted() -> None:
    assert dotted(("data", "train", 0, "path")) == "data.train[0].path"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=1), inner),
    max_leaves=10,
)


# the first text that hypothesis draws reads its tables of characters, slow on a busy machine
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(alphabet="abcxyz_", min_size=1), _VALUES))
def test_dumped_values_load_back(value: dict[str, Any]) -> None:
    document = parse_yaml(dump_yaml(value), "dumped")
    assert document.faults == []
    assert document.value == value
