"""Messages about episodes and held-out tasks, word for word, as the commands say them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from letters import save_letters

from ds_train.cli import main
from ds_train.config.load import load_recipe
from ds_train.data.show import show_data

GOOD = """\
output_dir: run
model: {name_or_path: org/model}
data:
  train:
  - {path: org/a, name: a}
  - {path: org/b, name: b}
  - {path: org/c}
  packing: false
fewshot: {episodes: {k: 2, held_out: [c]}}
train: {max_steps: 100}
cluster: {processes_per_node: 1}
"""

# overrides -> the message of validate
CASES: list[tuple[list[str], str]] = [
    (
        ["fewshot.episodes.held_out=[d]"],
        'fewshot.episodes.held_out: no source is called "d"; there are a, b, c.',
    ),
    (
        ["data.train.0.name=antonyms", "fewshot.episodes.held_out=[antonym]"],
        'fewshot.episodes.held_out: no source is called "antonym"; did you mean antonyms?',
    ),
    (
        ["data.train.1.name=c"],
        'fewshot.episodes.held_out: 2 sources are called "c", so that the task would be trained '
        "on and held out; give each source a name of its own (name:).",
    ),
    (
        ["data.train.1.path=org/c"],
        "fewshot.episodes.held_out: c is read from org/c, and so is b, which is trained on; a "
        "held-out task wants data of its own.",
    ),
    (
        ["fewshot.episodes.held_out=[a, b, c]"],
        "fewshot.episodes.held_out: names all of data.train, so that nothing would be left to "
        "train on.",
    ),
    (
        ["fewshot.episodes.shots=[]"],
        "fewshot.episodes.shots = []: is empty; name at least one number of demonstrations, e.g. "
        "[0, 4] (on the command line).",
    ),
    (
        ["fewshot.episodes.k=-1"],
        "fewshot.episodes.k = -1: must be at least 0 (on the command line).",
    ),
    (
        ["fewshot.episodes.order=bm25"],
        'fewshot.episodes.order = "bm25": must be one of random, balanced (on the command line).',
    ),
    (
        ["fewshot.episodes.k=0", "fewshot.episodes.permute_labels=true"],
        "fewshot.episodes.permute_labels = true with k = 0: there are no demonstrations that it "
        "could be about; remove it, or take a k of 1 or more.",
    ),
    (
        ["curriculum={metric: length}"],
        "curriculum with fewshot.episodes: episodes draw their queries and demonstrations by "
        "themselves (tasks by fewshot.episodes.temperature); remove one of them.",
    ),
    (
        ["data.mixture={temperature: 2}"],
        "data.mixture with fewshot.episodes: episodes draw their queries and demonstrations by "
        "themselves (tasks by fewshot.episodes.temperature); remove one of them.",
    ),
    (
        ["fewshot.losses={}"],
        "fewshot.losses with fewshot.episodes: the losses score the candidate answers of one "
        "example, and an episode is a row of several; remove one of them.",
    ),
    (
        ["evaluate.rank_classification=true"],
        "evaluate.rank_classification with fewshot.episodes: answers would be ranked without the "
        "demonstrations that the run trains with; remove it (fewshot.episodes.shots says with how "
        "many the loss is measured).",
    ),
    (
        ["data.over_length=split"],
        "data.over_length = split with fewshot.episodes: it makes examples without their answer; "
        "take drop or error.",
    ),
    (
        ["data.train.1.format=text"],
        "data.train[1].format = text with fewshot.episodes: no answer could be told from its "
        "input; remove the source, or the setting.",
    ),
    (
        ["compare={arms: {one: {}}, metrics: [shots.4.loss]}", "data.validation.fraction=0.1"],
        'compare.arms.one: compare.metrics[0] = "shots.4.loss": is measured where '
        "fewshot.episodes.shots has 4, and here it measures 0, 2; add it there, or take loss.",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), CASES, ids=lambda value: str(value)[:60])
def test_message(
    overrides: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    Path("my.yaml").write_text(GOOD)
    command = "compare" if overrides[0].startswith("compare") else "validate"
    assert main([command, "my.yaml", *overrides]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["my.yaml"]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three small tasks of prompts and completions and a model folder with a tokenizer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    save_letters(Path("model"))
    Path("model/config.json").write_text(json.dumps({"model_type": "llama"}))
    for name in "abc":
        write(name, [{"prompt": f"{name} {n}:", "completion": f" {n % 3}"} for n in range(9)])
    recipe = GOOD.replace("org/model", "model").replace("path: org/", "path: ")
    for name in "abc":
        recipe = recipe.replace(f"path: {name}", f"path: {name}.jsonl")
    recipe = recipe.replace("path: c.jsonl", "path: c.jsonl, name: c")
    recipe = recipe.replace("name_or_path: model", "name_or_path: model, init: random")
    Path("my.yaml").write_text(recipe.replace("packing: false", "cache_dir: cache"))
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def said(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """What `ds-train data` says of a recipe that it refuses."""
    assert main(["data", "my.yaml", *overrides]) == 2
    return capsys.readouterr().err


def test_a_held_out_task_whose_examples_are_trained_on(
    tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("c", [{"prompt": f"{'cb'[n % 2]} {n}:", "completion": f" {n % 3}"} for n in range(9)])
    assert said(capsys) == (
        "error: fewshot.episodes.held_out: 4 of the 9 examples of c are trained on too, most of "
        "them in data.train[1] (b), the first in its row 2; remove them from one of the two.\n"
    )


def test_a_held_out_task_is_validation_data(
    tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "my.yaml"]) == 0
    out = capsys.readouterr().out
    assert "episodes: 18 in an epoch, 2 demonstrations each, 2 tasks\n" in out
    assert "train: 18 samples" in out and "validation: 9 samples" in out


def test_fewer_examples_than_demonstrations(
    tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "fewshot.episodes.k=9") == (
        "error: 2 faults:\n"
        "  fewshot.episodes: 9 demonstrations, but task a has 9 different examples, and for a "
        "query at least 8 others; take k (and shots) of at most 8, or remove the task.\n"
        "  fewshot.episodes: 9 demonstrations, but task b has 9 different examples, and for a "
        "query at least 8 others; take k (and shots) of at most 8, or remove the task.\n"
    )


def test_no_room_for_a_demonstration(tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "data.max_length=9") == (
        "error: data.max_length = 9: in none of the episodes is there room for a demonstration; "
        "raise it.\n"
    )


def test_demonstrations_that_do_not_fit_are_counted(
    tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "my.yaml", "data.max_length=20"]) == 0
    assert (
        "18 of 36 demonstrations are left out, as they do not fit into data.max_length = 20\n"
        in capsys.readouterr().out
    )


def test_a_step_shows_its_episodes(tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["data.packing=false", "train.global_batch_size=2"]
    assert main(["data", "my.yaml", "--step", "1", "--no-color", *overrides]) == 0
    out = capsys.readouterr().out
    assert out.count("; after rows ") == 2 and out.count("\xab") == 2
    said = []
    show_data(load_recipe("my.yaml", overrides), step=1, as_json=True, say=said.append)
    step = json.loads(said[-1])["step"]
    for rows in (row for micro_batch in step["ranks"][0] for row in micro_batch):
        (episode,) = rows
        others = {one["source"] for one in episode["demonstrations"]}
        assert others == {episode["source"]} and len(episode["demonstrations"]) == 2
        assert episode["supervised_tokens"] == sum(episode["mask"]) == 3
        text = "".join(one["text"] for one in episode["segments"])
        assert text.count(":") == 3 and text.endswith("</s>")
