"""Tokenised once, the same whatever the workers, found again, rebuilt when broken."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import recipe, write_jsonl

from ds_train.config.run import RunConfig
from ds_train.data import tokenise
from ds_train.data.audit import format_audit
from ds_train.data.divide import PreparedData, held_out
from ds_train.data.encode import open_tokenizer
from ds_train.data.prepare import open_data, prepare_data
from ds_train.errors import DataError

PAIRS = [{"prompt": f"What is {i}?", "completion": f" It is {i * i}."} for i in range(60)]


def quiet(text: str) -> None:
    """Says nothing."""


def prepare(config: RunConfig) -> PreparedData:
    return prepare_data(config, say=quiet)


def contents(data: PreparedData) -> list[tuple[list[int], list[bool], int]]:
    store = data.train
    return [
        (store.tokens(i).tolist(), store.mask(i).tolist(), int(store.ordinals[i]))
        for i in range(store.num_samples)
    ]


def test_gsm8k_numbers(shared_dir: Path, stories260k: Path, tmp_path: Path) -> None:
    source = {"path": str(shared_dir / "data/gsm8k/train.jsonl"), "max_samples": 200}
    data = prepare(recipe(stories260k, tmp_path, [source], max_length=400))
    facts = data.audit["sources"][0]
    assert facts["format"] == "question_answer" and "no chat template" in facts["how"]
    assert facts["rows"] == 200 == facts["samples"] + facts["dropped_too_long"]
    assert data.train.lengths.max() <= 400 and data.validation is None
    tokenizer = open_tokenizer(recipe(stories260k, tmp_path, [source]).model)
    store = data.train
    for index in range(20):
        learned = tokenizer.decode(store.tokens(index)[store.mask(index)])
        assert learned.endswith("</s>") and "####" in learned and "Question" not in learned
        assert int(store.supervised[index]) == store.mask(index).sum()


def test_workers_change_nothing(
    stories260k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", PAIRS)
    alone = prepare(recipe(stories260k, tmp_path / "1", [{"path": path}]))
    monkeypatch.setattr(tokenise, "_FEW_ROWS", 1)
    monkeypatch.setattr(tokenise, "_CHUNK_ROWS", 7)
    several = prepare(recipe(stories260k, tmp_path / "2", [{"path": path}], num_workers=2))
    assert contents(several) == contents(alone)
    assert [ordinal for _, _, ordinal in contents(alone)] == list(range(60))
    assert several.fingerprint == alone.fingerprint
    broken = write_jsonl(tmp_path / "b.jsonl", [*PAIRS, {"prompt": "a", "completion": 3}])
    with pytest.raises(DataError, match='line 61 has the number 3 in column "completion"'):
        prepare(recipe(stories260k, tmp_path / "2", [{"path": broken}], num_workers=2))


def test_cache_is_found_again_and_named_by_content(stories260k: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", PAIRS)
    said: list[str] = []
    first = prepare(recipe(stories260k, tmp_path, [{"path": path}]))
    again = prepare_data(recipe(stories260k, tmp_path, [{"path": path}]), say=said.append)
    assert "tokenised before" in said[0] and again.fingerprint == first.fingerprint
    assert again.audit == first.audit
    opened = open_data(recipe(stories260k, tmp_path, [{"path": path}]))
    assert contents(opened) == contents(first) and opened.audit == first.audit

    copied = shutil.copy(path, str(tmp_path / "copy.jsonl"))  # another path, another time
    assert prepare(recipe(stories260k, tmp_path, [{"path": copied}])).fingerprint == (
        first.fingerprint
    )
    indifferent = recipe(
        stories260k, tmp_path, [{"path": path, "weight": 2.0}], packing=False, shuffle=False
    )
    assert prepare(indifferent).fingerprint == first.fingerprint
    for changed in (
        recipe(stories260k, tmp_path, [{"path": path}], max_length=100),
        recipe(stories260k, tmp_path, [{"path": path, "loss_on": "all"}]),
        recipe(stories260k, tmp_path, [{"path": path, "max_samples": 50}]),
        recipe(stories260k, tmp_path, [{"path": path}], validation={"fraction": 0.1}),
    ):
        assert prepare(changed).fingerprint != first.fingerprint
    write_jsonl(tmp_path / "a.jsonl", [*PAIRS[:-1], {"prompt": "What is ?", "completion": " It."}])
    assert prepare(recipe(stories260k, tmp_path, [{"path": path}])).fingerprint != (
        first.fingerprint
    )


def test_ranks_started_by_hand_tokenise_once(stories260k: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", PAIRS)
    config = recipe(stories260k, tmp_path, [{"path": path}])
    with ThreadPoolExecutor(2) as ranks:
        first, second = ranks.map(open_data, [config, config])
    assert contents(first) == contents(second)
    (store,) = (tmp_path / "cache").glob("*/tokens.bin")
    before = store.stat().st_mtime_ns
    open_data(config)
    assert store.stat().st_mtime_ns == before


def test_a_broken_cache_is_rebuilt(stories260k: Path, tmp_path: Path) -> None:
    config = recipe(stories260k, tmp_path, [{"path": write_jsonl(tmp_path / "a.jsonl", PAIRS)}])
    expected = contents(prepare(config))
    tokens = next((tmp_path / "cache").glob("*/tokens.bin"))
    tokens.write_bytes(bytes([tokens.read_bytes()[0] ^ 1]) + tokens.read_bytes()[1:])
    said: list[str] = []
    assert contents(prepare_data(config, say=said.append)) == expected
    assert "is broken (tokens.bin does not match its checksum); made anew" in said[0]


def test_two_at_the_same_time(stories260k: Path, tmp_path: Path) -> None:
    config = recipe(stories260k, tmp_path, [{"path": write_jsonl(tmp_path / "a.jsonl", PAIRS)}])
    with ThreadPoolExecutor(4) as pool:
        names = {data.fingerprint for data in pool.map(prepare, [config] * 4)}
    assert len(names) == 1
    folders = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(folders) == 1 and open_data(config).train.num_samples == 60


LONG = {"prompt": "Say it.", "completion": " word" * 100}


def _long(stories260k: Path, folder: Path, over_length: str | None) -> PreparedData:
    path = write_jsonl(folder / "a.jsonl", [PAIRS[0], LONG])
    settings = {"over_length": over_length} if over_length else {}
    return prepare(recipe(stories260k, folder, [{"path": path}], max_length=40, **settings))


def test_over_length_drop_is_the_default_and_counted(stories260k: Path, tmp_path: Path) -> None:
    data = _long(stories260k, tmp_path, None)
    facts = data.audit["sources"][0]
    assert (facts["rows"], facts["samples"], facts["dropped_too_long"]) == (2, 1, 1)


def test_over_length_truncate(stories260k: Path, tmp_path: Path) -> None:
    data = _long(stories260k, tmp_path, "truncate")
    assert data.train.lengths.tolist()[1] == 40
    assert data.audit["sources"][0]["truncated"] == 1


def test_over_length_split_loses_no_supervised_token(stories260k: Path, tmp_path: Path) -> None:
    split = _long(stories260k, tmp_path, "split").train
    whole_path = write_jsonl(tmp_path / "b.jsonl", [LONG])
    whole = prepare(recipe(stories260k, tmp_path, [{"path": whole_path}])).train
    pieces = [i for i in range(split.num_samples) if split.ordinals[i] == 1]
    assert len(pieces) > 2 and max(split.lengths[pieces]) == 40
    joined = np.concatenate([split.tokens(i)[(i != pieces[0]) :] for i in pieces])
    assert joined.tolist() == whole.tokens(0).tolist()
    assert sum(split.supervised[pieces]) == whole.supervised[0]


def test_a_split_that_comes_out_even_has_no_piece_of_one_token(
    stories260k: Path, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a" * 31}])
    whole = prepare(recipe(stories260k, tmp_path, [{"path": path}])).train
    limit = (int(whole.lengths[0]) - 1) // 2 + 1
    assert (limit - 1) * 2 + 1 == whole.lengths[0]
    data = prepare(recipe(stories260k, tmp_path, [{"path": path}], max_length=limit))
    assert data.train.lengths.tolist() == [limit, limit]
    assert data.audit["sources"][0]["split_pieces"] == 2


def test_over_length_error_names_the_row(stories260k: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2 has \d+ tokens, but data.max_length = 40; raise"):
        _long(stories260k, tmp_path, "error")


def test_unsupervised_rows_and_duplicates_are_counted(stories260k: Path, tmp_path: Path) -> None:
    rows = [*PAIRS[:3], PAIRS[0], {"prompt": "nothing", "completion": " "}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = prepare(recipe(stories260k, tmp_path, [{"path": path}]))
    facts = data.audit["sources"][0]
    assert (facts["rows"], facts["samples"]) == (5, 4)
    assert (facts["dropped_unsupervised"], facts["duplicates"]) == (1, 1)
    assert "a.jsonl: 1 rows left out since nothing in them is learned from" in (
        format_audit(data.audit)
    )


def test_validation_by_fraction_keeps_duplicates_together(
    stories260k: Path, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", PAIRS * 2)
    config = recipe(stories260k, tmp_path, [{"path": path}], validation={"fraction": 0.25})
    data = prepare(config)
    assert data.validation is not None
    assert data.train.num_samples + data.validation.num_samples == 120
    assert 10 <= data.validation.num_samples <= 50
    assert not set(data.train.hashes.tolist()) & set(data.validation.hashes.tolist())
    assert data.audit["validation"]["samples"] == data.validation.num_samples


def test_held_out_share_is_the_fraction() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    assert abs(held_out(hashes, 0.05).mean() - 0.05) < 0.003
    assert not held_out(hashes, 0.0).any()
    assert (held_out(hashes, 0.05) <= held_out(hashes, 0.1)).all()  # a larger share keeps it


def test_validation_sources_are_only_evaluated_on(stories260k: Path, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", PAIRS[:50])
    held = write_jsonl(tmp_path / "b.jsonl", PAIRS[45:])
    validation = {"sources": [{"path": held}]}
    data = prepare(recipe(stories260k, tmp_path, [{"path": train}], validation=validation))
    assert data.validation is not None
    assert (data.train.num_samples, data.validation.num_samples) == (50, 15)
    assert data.source_names == ("a.jsonl", "b.jsonl") and data.source_weights == (1.0, 1.0)
    assert data.audit["validation_in_train"] == 5


def test_conversations_and_text_together(
    shared_dir: Path, stories260k: Path, tmp_path: Path
) -> None:
    seeds = str(shared_dir / "data/self_instruct_seeds/seed_tasks.jsonl")
    text = tmp_path / "play.txt"
    text.write_text((shared_dir / "data/tinyshakespeare/input.txt").read_text()[:5000])
    train: list[Any] = [
        {"path": seeds, "columns": {"output": "instances.0.output"}, "name": "seeds"},
        {"path": str(text)},
        {
            "path": str(shared_dir / "data/banking77/test.csv"),
            "columns": {"label": "category"},
            "max_samples": 20,
        },
    ]
    data = prepare(recipe(stories260k, tmp_path, train, chat_template="plain", max_length=128))
    seeds_facts, text_facts, bank_facts = data.audit["sources"]
    assert (seeds_facts["format"], seeds_facts["loss_on"]) == ("alpaca", "assistant")
    assert (text_facts["format"], text_facts["over_length"]) == ("text", "split")
    assert text_facts["supervised_tokens"] == text_facts["tokens"] - text_facts["samples"]
    assert bank_facts["format"] == "classification" and bank_facts["samples"] == 20
    assert data.audit["chat_template"] == "builtin plain"
