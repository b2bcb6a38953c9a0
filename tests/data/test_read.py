"""Rows come from every kind of file with the place they stand at."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ds_train.config.data import DataConfig
from ds_train.data.read import Row, read_rows
from ds_train.data.sources import is_hub_name, resolve_sources
from ds_train.errors import DataError

ROWS = [{"prompt": "α", "completion": "b\nc"}, {"prompt": "d,e", "completion": '"f"'}]


def rows_of(path: str | list[str], **settings: Any) -> list[Row]:
    data = DataConfig.model_validate({"train": [{"path": path, **settings}]})
    return list(read_rows(resolve_sources(data)[0]))


def values(path: Path | str) -> list[dict[str, Any]]:
    return [row.values for row in rows_of(str(path))]


def _jsonl() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def _csv(delimiter: str) -> bytes:
    return (f'prompt{delimiter}completion\nα{delimiter}"b\nc"\n"d,e"{delimiter}"""f"""\n').encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", _jsonl()),
        ("a.jsonl", b"\xef\xbb\xbf" + _jsonl() + b"\n\n"),  # with a byte order mark
        ("a.ndjson", _jsonl()),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=2).encode()),
        ("a.json", _jsonl()),  # JSON lines under the wrong ending, as hubs have them
        ("a.csv", _csv(",")),
        ("a.csv", b"\xef\xbb\xbf" + _csv(",").replace(b"\n", b"\r\n").replace(b"b\r\nc", b"b\nc")),
        ("a.tsv", _csv("\t")),
        ("a.jsonl.gz", gzip.compress(_jsonl())),
        ("a.csv.bz2", bz2.compress(_csv(","))),
        ("a.jsonl.xz", lzma.compress(_jsonl())),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert values(tmp_path / name) == ROWS


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    rows = rows_of(str(tmp_path / "a.parquet"))
    assert [row.values for row in rows] == ROWS
    assert rows[1].place.endswith('a.parquet": row 2')


def test_datasets_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(tmp_path / "two")
    assert values(tmp_path / "one") == ROWS
    assert values(tmp_path / "two") == ROWS
    assert [row.values for row in rows_of(str(tmp_path / "two"), split="test")] == ROWS[1:]
    with pytest.raises(DataError, match=r'split = "dev": the dataset has the splits train, test'):
        rows_of(str(tmp_path / "two"), split="dev")


def test_text_files_and_globs_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "c.txt"):
        (tmp_path / name).write_text(f"text {name}\n")
    assert values(tmp_path / "*.txt") == [{"text": "text b.txt\n"}, {"text": "text c.txt\n"}]
    both = rows_of([str(tmp_path / "c.txt"), str(tmp_path / "a.md")])
    assert [(row.ordinal, row.values["text"]) for row in both] == [
        (0, "text c.txt\n"),
        (1, "text a.md\n"),
    ]


def test_max_samples_reads_no_further(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nnot JSON\n')
    assert len(rows_of(str(tmp_path / "a.jsonl"), max_samples=1)) == 1
    with pytest.raises(DataError, match="line 2 is not valid JSON"):
        rows_of(str(tmp_path / "a.jsonl"), max_samples=2)


def test_reading_is_lazy(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nnot JSON\n')
    data = DataConfig.model_validate({"train": [{"path": str(tmp_path / "a.jsonl")}]})
    assert next(read_rows(resolve_sources(data)[0])).values == {"text": "one"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("squad", True),
        ("openai/gsm8k", True),
        ("chats.jsonl", False),
        ("data/chats.jsonl.gz", False),
        ("./gsm8k", False),
        ("/data/gsm8k", False),
        ("a/b/c", False),
    ],
)
def test_names_of_the_hub(path: str, expected: bool) -> None:
    assert is_hub_name(path) is expected


Write = Callable[[Path], None]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": "b"}\n["c"]\n', "line 2 is a list, not an object"),
        ("a.jsonl", b'{"a": "b"}\n{"a": "\xff"}\n', "line 2 is not UTF-8 text (byte 0xff"),
        ("a.jsonl", b"", "no rows; an empty source"),
        ("a.txt", b"", "no rows; an empty source"),
        ("a.json", b'{"rows": []}', "this object has the keys rows"),
        ("a.json", b"[1]", "entry 1 is a number, not an object"),
        ("a.json", b'[{"a": 1},\n}]', "not valid JSON (Expecting value in line 2, column 1)"),
        ("a.csv", b"a,b\n1,2\n1\n", "line 3 has 1 cells, but the header has 2 (a, b)"),
        ("a.csv", b"a,b\n1,\xe9\n", "line 2 is not UTF-8"),
        ("a.jsonl.gz", b"not compressed", "can't be decompressed"),
        ("a.jsonl.gz", gzip.compress(_jsonl())[:-9], "can't be decompressed"),
        ("a.parquet", b"not parquet at all", "not a readable Parquet file"),
        ("a.jsonl.zst", b"x", ".zst"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        rows_of(str(tmp_path / name))
    except DataError as error:
        assert message in str(error)
        assert str(error).startswith(f'data.train[0].path = "{tmp_path / name}": ')
    else:
        pytest.fail("no error")
