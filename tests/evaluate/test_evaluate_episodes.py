"""Held-out tasks measured in context: the numbers of a plain loop over hand-joined episodes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from ds_train.config.load import load_recipe
from ds_train.data.prepare import prepare_data
from ds_train.evaluate.loss import evaluate_command
from ds_train.fewshot.build import evaluation_episodes
from ds_train.model.tiny import save_tiny

SAID: list[str] = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, two tasks to train on and two that are held out."""
    folder = tmp_path_factory.mktemp("episodes")
    save_tiny(folder / "model", "llama")
    draw = random.Random(0)
    words = ["red", "green", "blue", "one", "two", "three"]
    for name in ("a", "b", "new1", "new2"):
        rows = [
            {
                "prompt": f"{number} " + " ".join(draw.choices(words, k=draw.randint(1, 3))),
                "completion": " " + " ".join(draw.choices(words, k=draw.randint(1, 2))),
            }
            for number in range(7)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(folder: Path, **episodes: Any) -> Path:
    def source(name: str) -> dict[str, str]:
        path = str(folder / f"{name}.jsonl")
        return {"name": name, "path": path, "format": "prompt_completion"}

    value = {
        "output_dir": str(folder / "run"),
        "model": {"name_or_path": str(folder / "model")},
        "data": {
            "train": [source("a"), source("b")],
            "validation": {"sources": [source("new1"), source("new2")]},
            "max_length": 256,
            "cache_dir": str(folder / "cache"),
            "num_workers": 1,
        },
        "train": {"max_steps": 2},
    }
    if episodes:
        value["fewshot"] = {"episodes": {"held_out": ["new1", "new2"], **episodes}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def evaluate(folder: Path, path: Path, **options: Any) -> dict[str, Any]:
    SAID.clear()
    model = str(folder / "model")
    return evaluate_command(
        model, recipe=path, dtype="fp32", device="cpu", say=SAID.append, **options
    )


def test_without_demonstrations_it_is_the_plain_evaluation(folder: Path) -> None:
    plain = evaluate(folder, recipe(folder))
    shots = evaluate(folder, recipe(folder, k=3))["shots"]["0"]
    for name in ("num_samples", "supervised_tokens", "token_accuracy", "exact_match"):
        assert shots[name] == plain[name]
        assert shots["sources"]["new2"][name] == plain["sources"]["new2"][name]
    assert shots["loss"] == pytest.approx(plain["loss"], rel=1e-6)


def test_with_demonstrations_it_is_a_plain_loop_over_the_joined_text(folder: Path) -> None:
    path = recipe(folder, k=3, shots=[3, 0, 2])
    result = evaluate(folder, path)
    assert list(result["shots"]) == ["0", "2", "3"]
    config = load_recipe(path)
    data = prepare_data(config, say=lambda text: None)
    assert data.validation is not None
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    for shots, episodes in evaluation_episodes(config, data, data.validation).items():
        losses, right = [], []
        for row in episodes.rows:
            ids: list[int] = []
            for sample, start, stop, _ in row.tolist():
                own = [-1 - sample] if sample < 0 else data.validation.tokens(sample)[start:stop]
                ids += map(int, own)
            query = int(row[-1, 0])
            answer = int(data.validation.mask(query).sum())
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -answer - 1 : -1]
            labels = torch.tensor(ids[-answer:])
            losses.append(torch.log_softmax(logits, -1).gather(1, labels[:, None])[:, 0].neg())
            right.append(bool((logits.argmax(-1) == labels).all()))
        numbers = result["shots"][str(shots)]
        assert numbers["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
        assert numbers["exact_match"] == pytest.approx(sum(right) / 14)
        assert numbers["demonstrations"] == 14 * shots
    assert result["loss"] == result["shots"]["3"]["loss"]
    assert [line for line in "\n".join(SAID).splitlines() if "-shot" in line] == [
        f"{folder / 'model'}, validation, {shots}-shot" for shots in (0, 2, 3)
    ]


def test_the_first_queries_have_the_demonstrations_of_all(folder: Path) -> None:
    path = recipe(folder, k=3, shots=[3])
    whole, part = evaluate(folder, path), evaluate(folder, path, max_samples=7)
    assert part["num_samples"] == 7
    assert part["loss"] == pytest.approx(whole["sources"]["new1"]["loss"], rel=1e-6)


def test_demonstrations_that_did_not_fit_are_told(folder: Path) -> None:
    path = recipe(folder, k=3)
    text = path.read_text().replace("max_length: 256", "max_length: 60")
    path.write_text(text)
    result = evaluate(folder, path)
    missing = 3 * 14 - result["demonstrations"]
    assert 0 < missing < 42
    told = f"3-shot ({missing} demonstrations did not fit into data.max_length)"
    assert told in "\n".join(SAID)
