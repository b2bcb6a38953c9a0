"""Demonstrations in lm_eval's tasks: whole, never the query, the same whatever else is asked."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from film_task import FILMS, load_task, write_task

from ds_train.config.shots import parse_demonstrations
from ds_train.errors import ConfigError, DataError
from ds_train.evaluate.task_options import TaskOptions, equip
from ds_train.evaluate.task_shots import TaskShots


class Bytes:
    """A reader of one token per byte, and BOS."""

    def __init__(self, max_length: int = 100_000) -> None:
        self.max_length = max_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        return [0] * (add_special_tokens is not False) + list(string.encode())

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.tok_encode(context), list(continuation.encode())


def embed(texts: Any) -> Any:
    """Vectors by the letters of a text."""
    return np.array([np.bincount(list(text.encode()), minlength=128) for text in texts], np.float32)


def contexts(
    folder: Path,
    shots: int = 3,
    limit: int | None = None,
    seed: int = 1234,
    reader: Bytes | None = None,
    name: str = "films",
    **options: Any,
) -> dict[str, str]:
    """Text of each document -> its context."""
    task = load_task(folder, name)
    found = equip(
        name,
        task,
        TaskOptions(**options),
        reader or Bytes(),
        embed=embed,
        limit=limit,
        say=lambda text: None,
    )
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(seed)
    task.build_all_requests(limit=limit)
    contexts.last = found  # type: ignore[attr-defined]
    return {instance.doc["text"]: instance.args[0] for instance in task.instances}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("tasks") / "films")


def shown(context: str) -> list[str]:
    """The inputs of the demonstrations in a context."""
    return [part.split("\n")[0] for part in context.split("\n\n")[:-1]]


@pytest.mark.parametrize("method", ["random", "balanced", "bm25", "knn", "fixed"])
def test_demonstrations_are_whole_and_never_the_query(films: Path, method: str) -> None:
    found = contexts(films, demonstrations=method)
    assert len(found) == 12
    answers = {film["text"]: ("bad", "very good")[film["label"]] for film in FILMS[:16]}
    for text, context in found.items():
        *before, query = context.split("\n\n")
        assert query == f"{text}\nIt was"
        assert len(before) == 3
        for demonstration in before:
            asked, answer = demonstration.split("\nIt was ")
            assert answers[asked] == answer
            assert asked != text


@pytest.mark.parametrize("method", ["random", "balanced", "bm25", "knn"])
def test_a_context_depends_on_seed_and_document_only(films: Path, method: str) -> None:
    whole = contexts(films, demonstrations=method)
    part = contexts(films, demonstrations=method, limit=5)
    assert part == {text: whole[text] for text in list(whole)[:5]}
    if method in ("random", "balanced"):
        assert contexts(films, demonstrations=method, seed=1) != whole


def test_the_order_of_the_documents_does_not_matter(films: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "turned")
    rows = FILMS[12:][::-1]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert contexts(folder) == contexts(films)


def test_lm_eval_s_own_drawing_is_left_alone(films: Path) -> None:
    plain = load_task(films)
    plain.set_config("num_fewshot", 3)
    plain.set_fewshot_seed(1234)
    plain.build_all_requests()
    theirs = {instance.doc["text"]: instance.args[0] for instance in plain.instances}
    assert contexts(films, draw="lm_eval") == theirs
    assert contexts(films) != theirs
    # one generator that runs through the documents, and draws one more in case it is the query
    random = Random(1234)
    for text, context in theirs.items():
        drawn = [film["text"] for film in random.sample(FILMS[:16], 4) if film["text"] != text]
        assert shown(context) == drawn[:3]


def test_whole_demonstrations_go_when_it_is_too_long(films: Path) -> None:
    full = contexts(films, shots=6)
    reader = Bytes(max_length=150)
    found = contexts(films, shots=6, reader=reader)
    for text, context in found.items():
        assert full[text].endswith(context)
        kept = shown(context)
        assert kept == shown(full[text])[6 - len(kept) :]
        assert len(reader.tok_encode(context + " very good")) - 1 <= 150
        longer = "\n\n".join(full[text].split("\n\n")[5 - len(kept) :])
        assert len(reader.tok_encode(longer + " very good")) - 1 > 150
    counts = contexts.last.shots.counts  # type: ignore[attr-defined]
    assert counts.documents == counts.shortened == 12
    assert counts.dropped == sum(6 - len(shown(context)) for context in found.values())
    (remark,) = contexts.last.remarks()  # type: ignore[attr-defined]
    assert remark == (
        f"task films: {counts.dropped} demonstrations of 12 of 12 documents left out: the model "
        "reads 150 tokens"
    )


def test_a_query_that_is_too_long_alone_is_said(films: Path) -> None:
    contexts(films, shots=2, reader=Bytes(max_length=20))
    (remark,) = contexts.last.remarks()  # type: ignore[attr-defined]
    assert "12 documents cut from the left even without any" in remark


def test_a_generation_task_keeps_room_for_what_is_generated(tmp_path: Path) -> None:
    folder = write_task(
        tmp_path / "spoken",
        "spoken",
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{['bad', 'very good'][label]}}",
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        generation_kwargs={"until": ["\n"], "max_gen_toks": 60},
    )
    found = contexts(folder, shots=6, reader=Bytes(max_length=200), name="spoken")
    lengths = [len(context.encode()) + 1 + 60 for context in found.values()]
    assert max(lengths) <= 200
    assert all(0 < len(shown(context)) < 6 for context in found.values())


def test_first_n_stays_first_n(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "first", fewshot_config={"sampler": "first_n"})
    for text, context in contexts(folder).items():
        first = [film["text"] for film in FILMS[:16] if film["text"] != text][:3]
        assert shown(context) == first


def test_fixed_documents_by_number(films: Path) -> None:
    for context in contexts(films, shots=2, demonstrations="fixed:9,2").values():
        assert shown(context) == [FILMS[9]["text"], FILMS[2]["text"]]


def test_a_second_context_with_the_same_demonstrations(films: Path) -> None:
    for how in (parse_demonstrations("random"), None):
        task = load_task(films)
        shots = TaskShots(task, how, Bytes())
        task.set_fewshot_seed(7)
        first, second = FILMS[20], {**FILMS[21], "text": "N/A"}
        asked = task.fewshot_context(first, num_fewshot=2)
        assert shots.again(second) == asked.replace(str(first["text"]), "N/A")
        # drawing goes on as if nothing had been asked in between
        other = load_task(films)
        TaskShots(other, how, Bytes())
        other.set_fewshot_seed(7)
        other.fewshot_context(first, num_fewshot=2)
        following = task.fewshot_context(FILMS[22], num_fewshot=2)
        assert following == other.fewshot_context(FILMS[22], num_fewshot=2)


def test_messages(films: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task films: 16 shots, but there are 16 documents"):
        contexts(films, shots=16)
    with pytest.raises(ConfigError, match=r"draw = lm_eval leaves the choice to the harness"):
        contexts(films, demonstrations="bm25", draw="lm_eval")
    folder = write_task(tmp_path / "same")
    rows = [film for film in FILMS[:16] if film["label"] == 1]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r'balanced: all 8 documents have the class "very good"'):
        contexts(folder, demonstrations="balanced")
