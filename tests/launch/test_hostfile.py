"""Hostfiles and filters, as strict as the launcher's."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_train.errors import ConfigError
from ds_train.launch.hostfile import filter_slots, read_hostfile


def write(folder: Path, text: str) -> Path:
    path = folder / "hostfile"
    path.write_text(text)
    return path


def test_hostfile(tmp_path: Path) -> None:
    path = write(tmp_path, "# two nodes\nworker-0 slots=8\n\n  worker-1   slots=4 # old\n")
    assert read_hostfile(path) == {"worker-0": 8, "worker-1": 4}


def test_all_bad_lines_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path, "a slots=2\nb slot=2\na slots=3\nc\nd slots=0\n")
    with pytest.raises(ConfigError) as caught:
        read_hostfile(path)
    place = f'cluster.hostfile = "{path}": line'
    assert caught.value.faults == [
        f'{place} 2 is "b slot=2"; write it like worker-0 slots=8.',
        f"{place} 3 names a again (first on line 1).",
        f'{place} 4 is "c"; write it like worker-0 slots=8.',
        f"{place} 5 gives d no slots; remove the line.",
    ]


def test_empty_and_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no host"):
        read_hostfile(write(tmp_path, "# nothing\n"))
    with pytest.raises(ConfigError, match="no such file"):
        read_hostfile(tmp_path / "absent")


SLOTS = {"a": [0, 1, 2, 3], "b": [0, 1]}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("", "", SLOTS),
        ("b@a:0,2", "", {"a": [0, 2], "b": [0, 1]}),
        ("a:3", "", {"a": [3]}),
        ("", "a:0,1@b", {"a": [2, 3]}),
    ],
)
def test_filters(include: str, exclude: str, expected) -> None:
    assert filter_slots(SLOTS, include, exclude) == expected


@pytest.mark.parametrize(
    ("include", "exclude", "words"),
    [
        ("c", "", "there is no host c; there are a, b"),
        ("", "b:2", "b has no slot 2; it has 2, counted from 0"),
        ("a", "b", "give --include or --exclude, not both"),
    ],
)
def test_bad_filters(include: str, exclude: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        filter_slots(SLOTS, include, exclude)
