"""Messages of evaluation tasks about what the user gave: exit code 2, and no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_train.cli import main
from ds_train.evaluate import task_list
from ds_train.model.tiny import save_tiny

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{train: data/{file}.jsonl, validation: data/{file}.jsonl}}
output_type: {kind}
training_split: train
validation_split: validation
doc_to_text: "{{{{{column}}}}}"
doc_to_target: gold
doc_to_choice: "{{{{[a, b]}}}}"
"""
RECIPE = """\
output_dir: run
model: {{name_or_path: ./base, dtype: fp32}}
data: {{train: [{{path: data/sums.jsonl, columns: {{prompt: q, completion: a}}}}], max_length: 64}}
train: {{global_batch_size: 2, per_device_train_batch_size: 2, max_steps: 2}}
evaluate: {evaluate}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, tasks that work and that don't, and their data one folder up."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    place = tmp_path_factory.mktemp("tasks")
    save_tiny(place / "base")
    (place / "tasks").mkdir()
    (place / "data").mkdir()
    rows = [{"q": f"{i} + 1 =", "a": str(i + 1), "b": str(i), "gold": 0} for i in range(6)]
    for name, answer in (("sums", "3"), ("empty", ""), ("long", "x" * 400)):
        rows[3]["b"] = answer
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (place / "data" / f"{name}.jsonl").write_text(text)
    write(place, "sums")
    write(place, "nofile", file="nothing")
    write(place, "nocolumn", column="question")
    write(place, "nokind", kind="multiplechoice")
    write(place, "empty", file="empty")
    write(place, "long", file="long")
    (place / "tasks" / "broken.yaml").write_text("task: broken\n  x: [\n")
    return place


def write(place: Path, name: str, **changes: str) -> None:
    values = {"file": "sums", "kind": "multiple_choice", "column": "q", **changes}
    (place / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, **values))


CASES = [
    ("--tasks sumz", 'tasks: "sumz": no such task of lm_eval, nor in "tasks"'),
    ("--tasks broken", '"tasks/broken.yaml" can\'t be read: mapping values'),
    ("--tasks sums --task-path nowhere", 'task_path = "nowhere": no such folder.'),
    ("--tasks nofile", 'task nofile: data_files: "data/nothing.jsonl" is in none of "'),
    (
        "--tasks nocolumn",
        "task nocolumn: can't be loaded (a template asks for a column that is not there: "
        "'question' is undefined).",
    ),
    ("--tasks nokind", "task nokind: can't be loaded (Got invalid output_type 'multiplechoice'"),
    (
        "--tasks sums --shots 0,9",
        "shots = 9: task sums has 6 documents to draw demonstrations from; ask for fewer.",
    ),
    (
        "--tasks empty",
        "task empty, document 3: a candidate answer is empty; give it a text, or leave the "
        "document out.",
    ),
    (
        "--tasks long",
        "task long, document 3: a candidate answer has 401 tokens, and the model reads at most 256",
    ),
    ("--tasks sums --output no/x.json", '--output "no/x.json": there is no folder '),
    (
        "--tasks sums --processes 2 --device cuda:1",
        "--device cuda:1: several processes take a device each; leave it out, or say cpu.",
    ),
    ("--tasks sums --recipe x.yaml", "--tasks: has no use for recipe; leave it out."),
]


@pytest.mark.parametrize(("options", "message"), CASES, ids=[options for options, _ in CASES])
def test_evaluate(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    path = "" if "--task-path" in options else "--task-path tasks"
    assert main(f"evaluate base {options} {path}".split()) == 2
    stderr = capsys.readouterr().err
    assert "error: " in stderr
    assert message in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("options", ["--shots 2", "--task-path tasks", "--zero 3"])
def test_options_without_tasks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, options: str
) -> None:
    monkeypatch.chdir(folder)
    assert main(f"evaluate base {options}".split()) == 2
    option = options.split()[0]
    assert f"error: {option}: is for evaluation tasks; name them with --tasks a,b." in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("shots", "words"),
    [("0,x", "must be a whole number of at least 0"), ("2,2", "names a number twice")],
)
def test_bad_numbers(capsys: Any, shots: str, words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "base", "--tasks", "sums", "--shots", shots])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(task_list.importlib.util, "find_spec", lambda name: None)
    assert main(["evaluate", "base", "--tasks", "sums"]) == 2
    assert capsys.readouterr().err == f"error: {task_list.MISSING}\n"


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ("{shots: [0, 2]}", "evaluate.shots: is for evaluation tasks; name them in evaluate.tasks"),
        ("{tasks: [sums], task_path: nowhere}", 'evaluate.task_path = "nowhere": no such folder'),
        ("{tasks: [sums], shots: [1, 1]}", "shots = [1, 1]: names a number twice; name each once"),
        ("{tasks: [sums], task_path: tasks, seeds: []}", "evaluate.seeds"),
    ],
)
def test_validate(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, evaluate: str, message: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "recipe.yaml").write_text(RECIPE.format(evaluate=evaluate))
    assert main(["validate", "recipe.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_a_recipes_tasks_are_opened_before_the_launch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder)
    text = RECIPE.format(evaluate="{tasks: [sums], task_path: tasks, shots: [9]}")
    (folder / "recipe.yaml").write_text(text)
    assert main(["train", "recipe.yaml"]) == 2
    assert capsys.readouterr().err.endswith(
        "error: evaluate.shots = 9: task sums has 6 documents to draw demonstrations from; ask for "
        "fewer.\n"
    )
    assert not (folder / "run" / "metrics.jsonl").exists()
