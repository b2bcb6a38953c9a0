"""Messages about difficulties, word for word, as a user meets them: `ds-train ...` in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ds_train.cli import main
from ds_train.model.tiny import save_tiny

RECIPE = """\
output_dir: run
model: {name_or_path: ./model, dtype: fp32}
data:
  train:
  - path: train.jsonl
  max_length: 128
  cache_dir: cache
train:
  global_batch_size: 4
  max_steps: 10
curriculum: {metric: length}
"""
ROWS: list[dict[str, Any]] = [
    {"prompt": f"{a} + 3?", "completion": f" {a + 3}", "steps": a, "level": "easy"}
    for a in range(8)
]
FUNCTIONS = """\
def good(row):
    return 1.0
def nan(row):
    return float("nan")
def text(row):
    return row["prompt"]
def wrong(row):
    return row["nothing"]
"""
ALL = (
    "must be one of length, target_length, rarity, rarity_mean, compression, readability, "
    'perplexity, ifd, loss, {column: name} or {python: "pkg.mod:fn"}'
)
LINE = 'data.train[0].path = "train.jsonl": line'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def here(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with a recipe, data, a model, and a module with functions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr("ds_train.train.start.run_launcher", _refuse_launch)
    Path("my.yaml").write_text(RECIPE)
    Path("own_functions.py").write_text(FUNCTIONS)
    Path("no_model").mkdir()
    shutil.copytree(model, "model")
    write_rows({})
    return tmp_path


def _refuse_launch(*args: Any, **kwargs: Any) -> int:
    raise AssertionError("the fault came through to the launch")


def write_rows(changes: dict[int, dict[str, Any]]) -> None:
    """The data, with other values in some rows; None removes a column."""
    rows = [{**row, **changes.get(number, {})} for number, row in enumerate(ROWS)]
    kept = [{key: value for key, value in row.items() if value != "absent"} for row in rows]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


# what is asked for -> the message; DIR stands for the working folder
CASES: dict[str, tuple[list[str], str]] = {
    "unknown metric": (
        ["curriculum.metric=lenght"],
        f'curriculum.metric = "lenght": {ALL}. Did you mean length? (on the command line)',
    ),
    "no metric": (
        ["curriculum.metric=[]"],
        "curriculum.metric = []: names no metric; give one, for example length (on the command "
        "line).",
    ),
    "unknown kind of metric": (
        ["curriculum.metric={colum: steps}"],
        f"curriculum.metric: {ALL} (on the command line).",
    ),
    "missing column": (
        ["curriculum.metric={column: step}"],
        f'{LINE} 1 has no column "step", which curriculum.metric = {{column: step}} reads; it has '
        "prompt, completion, steps, level. Did you mean steps?",
    ),
    "text without levels": (
        ["curriculum.metric={column: level}"],
        f'curriculum.metric = {{column: level}}: {LINE} 1 has "easy", which is no number; say what '
        "is easy and what is hard: {column: level, levels: [..., easy, ...]}.",
    ),
    "unknown level": (
        ["curriculum.metric={column: level, levels: [low, high]}"],
        f"curriculum.metric = {{column: level, levels: [low, high]}}: {LINE} 1 has "
        '"easy", which is none of its levels: low, high.',
    ),
    "one level": (
        ["curriculum.metric={column: level, levels: [easy]}"],
        "curriculum.metric: levels wants the texts of the column from easy to hard, each once, "
        "e.g. {column: level, levels: [elementary, advanced]} (on the command line).",
    ),
    "no such module": (
        ["curriculum.metric={python: 'own.functions:good'}"],
        "curriculum.metric = {python: own.functions:good}: there is no module own.functions in "
        'DIR, nor among the installed packages; write "package.module:function".',
    ),
    "no such function": (
        ["curriculum.metric={python: 'own_functions:god'}"],
        'curriculum.metric = {python: own_functions:god}: own_functions has no function "god". Did '
        "you mean good?",
    ),
    "no function named": (
        ["curriculum.metric={python: own_functions}"],
        'curriculum.metric: python wants "package.module:function", e.g. '
        '{python: "my.metrics:difficulty"} (on the command line).',
    ),
    "a function that fails": (
        ["curriculum.metric={python: 'own_functions:wrong'}"],
        f"curriculum.metric = {{python: own_functions:wrong}}: {LINE} 1: the function raised "
        "KeyError: 'nothing'.",
    ),
    "a function that gives NaN": (
        ["curriculum.metric={python: 'own_functions:nan'}"],
        f"curriculum.metric = {{python: own_functions:nan}}: {LINE} 1: the function gave nan; a "
        "difficulty must be a finite number.",
    ),
    "a function that gives text": (
        ["curriculum.metric={python: 'own_functions:text'}"],
        f"curriculum.metric = {{python: own_functions:text}}: {LINE} 1: the function gave "
        "'0 + 3?', which is no number.",
    ),
    "no model for perplexity": (
        ["curriculum.metric=perplexity"],
        "curriculum: metric perplexity wants metric_model, the model that measures it (given: "
        "metric) (my.yaml, line 11).",
    ),
    "a model that is not there": (
        ["curriculum.metric=ifd", "curriculum.metric_model=./modle"],
        'curriculum.metric_model = "./modle": no such folder in DIR. Did you mean model?',
    ),
    "a folder without a model": (
        ["curriculum.metric=ifd", "curriculum.metric_model=no_model"],
        'curriculum.metric_model = "no_model": neither a run (recipe.yaml), nor an adapter '
        "(adapter_config.json), nor a model (config.json).",
    ),
    "no curriculum": (
        ["curriculum=null"],
        "curriculum is missing, so nothing says what is hard; add the section, or write e.g. "
        "curriculum.metric=length behind the recipe.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    overrides, message = CASES[name]
    assert read_message(["score", "my.yaml", *overrides], here, capfd) == message


def read_message(typed: list[str], here: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What the user reads behind "error: "; the data's own progress is no part of it."""
    capfd.readouterr()
    assert main(typed) == 2
    out, err = capfd.readouterr()
    *progress, message = err.splitlines()
    assert all(line.startswith(("data", "difficulty")) for line in progress)
    assert "launching" not in out and not Path("run").exists()
    assert message.startswith("error: ")
    return message.removeprefix("error: ").replace(str(here), "DIR")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (float("nan"), "NaN; a difficulty must be a finite number."),
        (float("inf"), "Infinity; a difficulty must be a finite number."),
        ("nan", '"nan"; a difficulty must be a finite number.'),
        (None, "null, which is no number; give every row a number."),
        (True, "true, which is no number; give every row a number."),
        ([1], "[1], which is no number; give every row a number."),
    ],
)
@pytest.mark.parametrize("command", ["score my.yaml", "train my.yaml", "data my.yaml --step 1"])
def test_a_row_without_a_number(
    value: Any, what: str, command: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_rows({4: {"steps": value}})
    typed = [*command.split(), "curriculum.metric={column: steps}"]
    message = read_message(typed, here, capfd)
    assert message == f"curriculum.metric = {{column: steps}}: {LINE} 5 has {what}"


def test_a_column_that_ends_early(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_rows({6: {"steps": "absent"}})
    message = read_message(["train", "my.yaml", "curriculum.metric={column: steps}"], here, capfd)
    assert message == (
        f'{LINE} 7 has no column "steps", which curriculum.metric = {{column: steps}} reads; it '
        "has prompt, completion, level."
    )


@pytest.mark.parametrize("command", ["train my.yaml", "data my.yaml --step 1"])
def test_a_model_has_not_measured_yet(
    command: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = read_message([*command.split(), "curriculum.metric=loss"], here, capfd)
    assert message == (
        "curriculum.metric = loss: the samples have not been scored with this model and this data; "
        "run `ds-train score` with the same recipe first."
    )


def test_the_folder_is_fine_without_a_fault(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the cases above would not show what their names say."""
    launched: list[Any] = []
    monkeypatch.setattr("ds_train.train.start.run_launcher", lambda *a, **k: launched.append(a))
    for metric in ("{column: steps}", "{python: 'own_functions:good'}", "loss"):
        assert main(["score", "my.yaml", f"curriculum.metric={metric}"]) == 0
        main(["train", "my.yaml", f"curriculum.metric={metric}"])
    assert len(launched) == 3
