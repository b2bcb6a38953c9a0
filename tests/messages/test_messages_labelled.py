"""Messages about labelled examples and k-shot subsets, word for word, as the commands say them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_train.cli import main

RECIPE = """\
output_dir: run
model: {name_or_path: MODEL}
data:
  train:
  - {path: train.jsonl, format: FORMAT}
  max_length: 64
  cache_dir: cache
  num_workers: 1
train: {max_steps: 5}
cluster: {processes_per_node: 1}
"""
FILMS = [{"text": f"film {i}", "label": "good" if i % 2 else "bad"} for i in range(12)]
QUESTION = {"prompt": "2 + 3?", "choices": ["4", "five", "6"], "answer": "five"}
LOSSES = "fewshot.losses={}"
PLACE = 'data.train[0].path = "train.jsonl": line 1'

# format, changes of the first row, overrides -> the message
CASES: list[tuple[str, dict[str, Any], list[str], str | None]] = [
    (
        "multiple_choice",
        {"choices": None},
        [],
        f'{PLACE} has no column "choices", which format multiple_choice needs; it has prompt, '
        "answer. Name the right one: columns: {choices: ...}",
    ),
    (
        "multiple_choice",
        {},
        ["data.train.0.columns={choices: [sol1, sol2]}"],
        'data.train[0].columns.choices = "sol1": no such column; the columns are prompt, choices, '
        "answer.",
    ),
    (
        "multiple_choice",
        {"answer": 3},
        [],
        f'{PLACE} has the answer 3 in column "answer"; it has 3 answers, counted from 0 to 2.',
    ),
    (
        "multiple_choice",
        {"answer": -1},
        [],
        f'{PLACE} has the answer -1 in column "answer"; it has 3 answers, counted from 0 to 2.',
    ),
    (
        "multiple_choice",
        {"answer": "D"},
        [],
        f'{PLACE} has the answer "D" in column "answer", which is none of its 3 answers: neither a '
        "text of 4, five, 6, nor an index from 0 to 2, nor a letter from A to C.",
    ),
    (
        "multiple_choice",
        {"answer": 1.0},
        [],
        f'{PLACE} has the number 1.0 in column "answer", which must be the index (from 0), the '
        "letter or the text of the right answer.",
    ),
    (
        "multiple_choice",
        {"choices": ["3", "1", "0"], "answer": "1"},
        [],
        None,
    ),
    (
        "multiple_choice",
        {"choices": ["1", "0", "7"], "answer": "1"},
        [],
        f'{PLACE} has the answer "1" in column "answer", which is the text of answer 0 and the '
        "index of answer 1 (from 0); write an index as a number, or name a letter (A, B, ...).",
    ),
    (
        "multiple_choice",
        {"choices": ["4", " ", "6"], "answer": 0},
        [],
        f'{PLACE} has an empty answer (number 1, from 0) in column "choices"; fill it in, or '
        "remove it.",
    ),
    (
        "multiple_choice",
        {"choices": ["4", None], "answer": 0},
        [],
        f'{PLACE} has null as answer 1 of column "choices", which must be text.',
    ),
    (
        "multiple_choice",
        {"choices": ["4"], "answer": 0},
        [],
        f'{PLACE} has one answer in column "choices"; there must be at least two to choose from.',
    ),
    (
        "multiple_choice",
        {"choices": ["4", "5", "4"], "answer": 1},
        [],
        f'{PLACE} has the answer "4" twice in column "choices"; one of them would count as wrong, '
        "so give it once.",
    ),
    (
        "multiple_choice",
        {"choices": "4 or 5"},
        [],
        f'{PLACE} has text in column "choices", which must be a list of answers; several columns '
        "are named one by one: columns: {choices: [a, b]}.",
    ),
    (
        "multiple_choice",
        {"choices": ["4", "five " * 40], "answer": 0},
        [LOSSES],
        f'{PLACE}: the answer "{("five " * 40)[:80]}..." has 122 tokens, which leaves no room for '
        "its prompt in data.max_length = 64; raise it, shorten the answer, or set "
        "data.over_length: drop to leave the row out.",
    ),
    (
        "multiple_choice",
        {"prompt": "2 + 3? " * 30},
        ["data.over_length=error"],
        f'{PLACE} has 223 tokens with the answer "five", but data.max_length = 64; raise it, or '
        "set data.over_length: drop.",
    ),
    (
        "multiple_choice",
        {},
        ["data.over_length=truncate"],
        "data.over_length = truncate: the answers of data.train[0] (train.jsonl) stand at the end "
        "of its rows and would be cut off; set drop or error, or leave it out (then plain text is "
        "split and the rest dropped).",
    ),
    (
        "multiple_choice",
        {},
        [LOSSES, "data.loss_on=all"],
        "data.train[0] (train.jsonl): loss_on = all with all answers of an example: only what is "
        "learned from tells them apart; set loss_on: completion.",
    ),
    (
        "multiple_choice",
        {},
        ["data.train.0.columns={prompt: [prompt, answer]}"],
        "data.train[0].columns.prompt: must be one column; only choices may be several.",
    ),
    (
        "classification",
        {"label": "bda"},
        ["data.train.0.labels={bad: no, good: yes}"],
        f'{PLACE} has the label "bda", which data.train[0].labels does not know; did you mean bad? '
        "Known: bad, good.",
    ),
    (
        "classification",
        {},
        ["data.train.0.labels={bad: '', good: yes}", LOSSES],
        'data.train[0].labels.bad = "": is empty; give the word that stands for it.',
    ),
    (
        "classification",
        {"label": " "},
        [LOSSES],
        "data.train[0] (train.jsonl): a row has an empty label; fill it in, or remove the row.",
    ),
    (
        "classification",
        {},
        ["data.train.0.template=['{text} is', '{text} is']"],
        "data.train[0].template = ['{text} is', '{text} is']: holds \"{text} is\" twice; give each "
        "template once (on the command line).",
    ),
    (
        "classification",
        {},
        ["data.train.0.template=[]"],
        "data.train[0].template = []: is empty; give templates, or remove the line (on the command "
        "line).",
    ),
    (
        "classification",
        {},
        ["data.train.0.template=5"],
        "data.train[0].template = 5: must be text; put it in quotes: '5' (on the command line).",
    ),
    (
        "classification",
        {},
        ["data.train.0.template=['{text} {titel}', '{text}']"],
        "data.train[0].template: {titel} is no text column; the columns are text, label.",
    ),
    (
        "classification",
        {},
        ["fewshot.subset.k=6"],
        'fewshot.subset.dev = true: class "bad" of source train.jsonl has 6 different examples to '
        "train on, and k = 6 for training and as many for dev want 12; take k of at most 3, or set "
        'dev: false.\nfewshot.subset.dev = true: class "good" of source train.jsonl has 6 '
        "different examples to train on, and k = 6 for training and as many for dev want 12; take "
        "k of at most 3, or set dev: false.",
    ),
    (
        "classification",
        {},
        ["fewshot.subset.k=0"],
        "fewshot.subset.k = 0: must be at least 1 (on the command line).",
    ),
    (
        "classification",
        {},
        ["fewshot.subset={k: 2, per: label}"],
        'fewshot.subset.per = "label": must be one of class, source (on the command line).',
    ),
    (
        "classification",
        {},
        ["fewshot.subset.seed=1"],
        "fewshot.subset.k is missing: Examples of each class (or source) that are trained on.",
    ),
]


RULES: list[tuple[str, dict[str, Any], list[str], str]] = [
    (
        "multiple_choice",
        {},
        ["data.train.0.labels={a: b}"],
        "data.train[0].labels: format = multiple_choice has no use for it (only classification); "
        "remove it.",
    ),
    (
        "multiple_choice",
        {},
        ["data.train.0.template='{text} is'"],
        'data.train[0].template = "{text} is": must contain {prompt}, where the question is put.',
    ),
    (
        "classification",
        {},
        ["data.train.0.template=['{text} is', '{txt} was']"],
        'data.train[0].template[1] = "{txt} was": must contain {text}, where the text to classify '
        "is put.",
    ),
]


@pytest.mark.parametrize(
    ("command", "form", "row", "overrides", "message"),
    [("data", *case) for case in CASES] + [("validate", *case) for case in RULES],
)
def test_messages(
    command: str,
    form: str,
    row: dict[str, Any],
    overrides: list[str],
    message: str | None,
    stories260k: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = FILMS if form == "classification" else [QUESTION] * 3
    first = {key: value for key, value in (rows[0] | row).items() if row.get(key, 0) is not None}
    lines = [json.dumps(one) for one in [first, *rows[1:]]]
    Path("train.jsonl").write_text("\n".join(lines) + "\n")
    recipe = RECIPE.replace("MODEL", str(stories260k)).replace("FORMAT", form)
    Path("my.yaml").write_text(recipe)
    code = main([command, "my.yaml", *overrides])
    error = capsys.readouterr().err
    if message is None:
        assert code == 0 and not error
        return
    faults = message.splitlines()
    listed = [f"  {fault}" for fault in faults]
    assert code == 2
    assert error.splitlines() == (
        [f"error: {message}"] if len(faults) == 1 else [f"error: {len(faults)} faults:", *listed]
    )
