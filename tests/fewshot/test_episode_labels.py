"""Episodes of labelled examples: templates, labels that change places, held-out tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from letters import save_letters

from ds_train.config.run import RunConfig
from ds_train.data.divide import PreparedData
from ds_train.data.prepare import prepare_data
from ds_train.errors import DataError
from ds_train.fewshot.build import build_episodes, evaluation_episodes

ANIMALS = ("cat", "dog", "hen", "cow", "pig", "ant")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of letters only."""
    return save_letters(tmp_path_factory.mktemp("tokenizer"))


def prepare(
    model: Path, folder: Path, template: Any = "{text}:", **episodes: Any
) -> tuple[RunConfig, PreparedData]:
    """Two tasks, whose answers are three words each; the second may be held out."""
    sources = []
    for name, words in (("size", ("big", "mid", "wee")), ("sound", ("moo", "woof", "miau"))):
        rows = [
            {"text": f"{animal} {number} {name}", "label": words[(place + number) % 3]}
            for number in range(6)
            for place, animal in enumerate(ANIMALS)
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"name": name, "path": str(path), "format": "classification"}
        sources.append({**source, "template": template})
    config = RunConfig.model_validate(
        {
            "output_dir": str(folder / "run"),
            "model": {"name_or_path": str(model)},
            "data": {
                "train": sources,
                "max_length": 512,
                "cache_dir": str(folder / "cache"),
                "num_workers": 1,
            },
            "fewshot": {"episodes": {"k": 5, "separator": ";", **episodes}},
            "train": {"max_steps": 10},
        }
    )
    return config, prepare_data(config, say=lambda text: None)


def texts(prepared: PreparedData, store: Any, parts: np.ndarray) -> list[tuple[str, str]]:
    """(input, answer) of each example of an episode, by the letters of its samples."""
    letters = sorted({chr(code) for code in range(32, 127)} | {"\n"})
    found = []
    for sample in [one for one in parts[:, 0].tolist() if one >= 0]:
        text = "".join(letters[i - 1] for i in store.tokens(sample).tolist() if i)
        left, right = text.rsplit(" ", 1)
        found.append((left, right))
    return found


def each(laid: Any) -> list[np.ndarray]:
    return [laid.parts[a:b] for a, b in zip(laid.offsets, laid.offsets[1:], strict=False)]


def test_labels_change_places_as_one_in_each_episode(model: Path, tmp_path: Path) -> None:
    config, prepared = prepare(model, tmp_path, permute_labels=True)
    store = prepared.train
    episodes = build_episodes(config, prepared, store, 5)
    right = {row["text"]: row["label"] for row in _rows(tmp_path)}
    swaps = set()
    for parts in each(episodes.lay(np.arange(72), 5, 0, training=True)):
        swap: dict[str, set[str]] = {}
        for left, answer in texts(prepared, store, parts):
            swap.setdefault(right[left.removesuffix(":")], set()).add(answer)
        assert all(len(answers) == 1 for answers in swap.values())
        assert len({*map(tuple, swap.values())}) == len(swap)  # no two words become one
        if len(swap) == 3:
            swaps.add(tuple(sorted((old, *new) for old, new in swap.items())))
    assert len(swaps) == 12  # all six of both tasks, that of no change among them


def _rows(folder: Path) -> list[dict[str, str]]:
    return [
        json.loads(line)
        for name in ("size", "sound")
        for line in (folder / f"{name}.jsonl").read_text().splitlines()
    ]


def test_an_evaluation_keeps_the_labels(model: Path, tmp_path: Path) -> None:
    config, prepared = prepare(model, tmp_path, permute_labels=True, held_out=["sound"])
    right = {row["text"]: row["label"] for row in _rows(tmp_path)}
    assert prepared.validation is not None
    store = prepared.validation.gold()
    shots = evaluation_episodes(config, prepared, store)
    assert list(shots) == [0, 5]
    for parts in shots[5].rows:
        shown = texts(prepared, store, parts)
        assert len(shown) == 6 and all("sound" in left for left, _ in shown)
        assert all(right[left.removesuffix(":")] == answer for left, answer in shown)


def test_an_episode_has_one_template(model: Path, tmp_path: Path) -> None:
    templates = ["{text}:", "what of {text}? say"]
    config, prepared = prepare(model, tmp_path, template=templates)
    episodes = build_episodes(config, prepared, prepared.train, 5)
    kinds = []
    for parts in each(episodes.lay(np.arange(72), 5, 0, training=True)):
        asked = {left.startswith("what of ") for left, _ in texts(prepared, prepared.train, parts)}
        assert len(asked) == 1
        kinds.append(asked.pop())
    assert 20 < sum(kinds) < 52  # of 72; 3.8 standard deviations


def test_permuted_labels_want_labels(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    rows = [{"prompt": f"{number}", "completion": f" {number + 1}"} for number in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, _ = prepare(model, tmp_path, permute_labels=True)
    plain = config.data.train[0].model_copy(
        update={"path": str(path), "name": "plain", "format": "prompt_completion", "template": None}
    )
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"train": [plain, config.data.train[1]]})}
    )
    prepared = prepare_data(config, say=lambda text: None)
    with pytest.raises(DataError, match="permute_labels: task plain has no labels that"):
        build_episodes(config, prepared, prepared.train, 2)
