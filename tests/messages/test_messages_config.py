"""Messages about recipes, word for word: field = value: rule; remedy, and where it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_train.cli import main

GOOD = """\
output_dir: run
model: {name_or_path: org/model}
data:
  train:
  - path: org/data
train:
  max_steps: 10
cluster: {processes_per_node: 2}
"""

# what replaces what in GOOD -> the message
CASES: list[tuple[str, str, str]] = [
    (
        "  max_steps: 10",
        "  max_steps: 10\n  max_steps: 20",
        "my.yaml, line 8: train.max_steps is written twice (first on line 7); remove one of them.",
    ),
    (
        "cluster: {",
        "cluster: {hostfile: [}",
        "my.yaml, line 8, column 22: not valid YAML: expected the node content, but found '}'; "
        "check brackets, quotes and indentation above this place.",
    ),
    (
        "  max_steps: 10",
        "\tmax_steps: 10",
        "my.yaml, line 7, column 1: not valid YAML: found character '\\t' that cannot start any "
        "token; indent with spaces, not with tabs.",
    ),
    (
        "  max_steps: 10",
        "  max_steps: 10\n  micro_batch_size: 4",
        "train.micro_batch_size: no such setting; here it is train.per_device_train_batch_size "
        "(my.yaml, line 8).",
    ),
    (
        "output_dir: run",
        "output_dir: run\nlora_rank: 8",
        "lora_rank: no such setting; here it is adapter.r (my.yaml, line 2).",
    ),
    (
        "output_dir: run",
        "output_dir: run\nlearning_rate: 8",
        "learning_rate: no such setting at the top level; here it is train.learning_rate "
        "(my.yaml, line 2).",
    ),
    (
        "  max_steps: 10",
        "  max_steps: 10\n  max_length: 4",
        "train.max_length: no such setting in train; here it is data.max_length (my.yaml, line 8).",
    ),
    (
        "  max_steps: 10",
        "  max_steps: 10\n  learnin_rate: 1e-3",
        "train.learnin_rate: no such setting. Did you mean train.learning_rate? (my.yaml, line 8)",
    ),
    (
        "cluster: {",
        "cluster: {restarts: -1, ",
        "cluster.restarts = -1: must be at least 0 (my.yaml, line 8).",
    ),
    (
        "cluster: {",
        "cluster: {hang_seconds: 0, ",
        "cluster.hang_seconds = 0: must be at least 1 (my.yaml, line 8).",
    ),
    (
        "cluster: {processes_per_node: 2}",
        "cluster: {gpus: 2}",
        "cluster.gpus: no such setting. In cluster there are: processes_per_node, hostfile, "
        "include, exclude, ssh_port, env, master_port, hang_seconds, restarts (my.yaml, line 8).",
    ),
    (
        "model: {name_or_path: org/model}",
        "model: {dtype: bf16}",
        "model.name_or_path is missing: Local folder or hub name of an `AutoModelForCausalLM`.",
    ),
    (
        "  max_steps: 10",
        "  learning_rate: 1e-3",
        "train: give exactly one of max_steps, num_train_epochs, max_tokens (given: none) "
        "(my.yaml, line 6).",
    ),
    (
        "  max_steps: 10",
        "  max_steps: ten",
        'train.max_steps = "ten": is not a number; write it like 4096, 4k, 2^12 or 1.5B '
        "(my.yaml, line 7).",
    ),
    (
        "  max_steps: 10",
        "  max_steps: 10\n  learning_rate: -1",
        "train.learning_rate = -1: must be at least 0 (my.yaml, line 8).",
    ),
    (
        "  max_steps: 10",
        "  max_steps: 10\n  learning_rate: .nan",
        "train.learning_rate = nan: is not a finite number (my.yaml, line 8).",
    ),
    (
        "  max_steps: 10",
        "  max_steps: 10\n  lr_scheduler_type: cosin",
        'train.lr_scheduler_type = "cosin": must be one of constant, linear, cosine, wsd. Did you '
        "mean cosine? (my.yaml, line 8)",
    ),
    (
        "  max_steps: 10",
        "  max_steps: 10\n  seed:",
        "train.seed is empty; give a value, or remove the line to take the default "
        "(my.yaml, line 8).",
    ),
    (
        "  - path: org/data",
        "    path: org/data",
        "data.train = {'path': 'org/data'}: must be a list, e.g. [{path: train.jsonl}] "
        "(my.yaml, line 4).",
    ),
    (
        "  - path: org/data",
        "  - path: org/data\n    format: openai",
        'data.train[0].format = "openai": must be one of messages, sharegpt, alpaca, '
        "prompt_completion, question_answer, text, classification, multiple_choice (my.yaml, "
        "line 6).",
    ),
    (
        "model: {name_or_path: org/model}",
        "model: org/model",
        'model = "org/model": must be a section with settings such as name_or_path: ... '
        "(my.yaml, line 2).",
    ),
    (
        "output_dir: run",
        "output_dir: run\ncheckpoint: {every: 50 stepz}",
        'checkpoint.every = "50 stepz": is not a duration; write it like 500 steps or 1B tokens '
        "(my.yaml, line 2).",
    ),
    (
        "org/model",
        "3",
        "model.name_or_path = 3: must be text; put it in quotes: '3' (my.yaml, line 2).",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), CASES, ids=[case[2][:40] for case in CASES])
def test_faults_of_a_recipe(tmp_path: Path, monkeypatch, capsys, old, new, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert old in GOOD
    Path("my.yaml").write_text(GOOD.replace(old, new, 1))
    assert main(["validate", "my.yaml"]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


OVERRIDES = [
    ("train.max_steps", "override train.max_steps: must be section.key=value."),
    (
        "train.max_steps=abc",
        'train.max_steps = "abc": is not a number; write it like 4096, 4k, 2^12 or 1.5B '
        "(on the command line).",
    ),
    (
        "trian.max_steps=3",
        "trian: no such setting. Did you mean train? (on the command line)",
    ),
    (
        "data.train.path=x",
        "override data.train.path=x: data.train is a list; say which entry, e.g. "
        "data.train[0].path=....",
    ),
    (
        "data.train.5.path=x",
        "override data.train.5.path=x: data.train has 1 entries, counted from 0; there is no [5].",
    ),
    (
        "output_dir.x=3",
        "override output_dir.x=3: output_dir is 'run', which has no settings inside.",
    ),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDES)
def test_faults_of_overrides(tmp_path: Path, monkeypatch, capsys, override, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(GOOD)
    assert main(["validate", "my.yaml", override]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_files_that_are_no_recipes(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(GOOD)
    Path("empty.yaml").touch()
    Path("list.yaml").write_text("- a\n")
    Path("binary.yaml").write_bytes(b"a: \xff\n")
    Path("folder").mkdir()
    for name, message in (
        ("mi.yaml", "mi.yaml: no such file. Did you mean my.yaml?"),
        ("no/x.yaml", "no/x.yaml: no such file. There is no folder no either."),
        ("folder", "folder: is a folder; give the recipe file inside it."),
        ("empty.yaml", "empty.yaml: is empty; `ds-train recipes` lists recipes to start from."),
        (
            "list.yaml",
            "list.yaml: a recipe is made of sections (`model:`, `data:`, `train:`, ...), "
            "not of a list.",
        ),
        ("binary.yaml", "binary.yaml: byte 3 is not UTF-8 text; a recipe is a YAML file."),
    ):
        assert main(["validate", name]) == 2
        assert capsys.readouterr().err == f"error: {message}\n"


def test_batch_and_engine(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    Path("my.yaml").write_text(GOOD)
    Path("hosts").write_text("worker-0 slots=8\nworker-1 8\n")
    for override, message in (
        (
            "train.global_batch_size=7",
            "train.global_batch_size = 7 does not divide into 2 processes x 1 row = 2. Nearest "
            "that do: 6 or 8; no per_device_train_batch_size divides it over 2 processes. Or set "
            "train.allow_empty_rows, which adds 1 row without content to each step.",
        ),
        (
            "engine.preset=zero_3",
            'engine.preset = "zero_3": no such preset; there are zero0, zero1, zero2, '
            "zero2_bf16_states, zero2_offload_cpu, zero3, zero3_bf16_states, zero3_offload_cpu, "
            "zero3_offload_nvme, zeropp. Did you mean zero3?",
        ),
        (
            "cluster.hostfile=hosts",
            'cluster.hostfile = "hosts": line 2 is "worker-1 8"; write it like worker-0 slots=8.',
        ),
        (
            "cluster.hostfile=host",
            f'cluster.hostfile = "host": no such file in {tmp_path}. Did you mean hosts?',
        ),
        (
            "engine.config=my.yam",
            f'engine.config = "my.yam": no such file in {tmp_path}. Did you mean my.yaml?',
        ),
        (
            "data.train.0.path=trian.jsonl",
            f'data.train[0].path = "trian.jsonl": no such file or folder in {tmp_path}.',
        ),
        (
            "model.name_or_path=./model",
            f'model.name_or_path = "./model": no such folder in {tmp_path}.',
        ),
    ):
        assert main(["validate", "my.yaml", override]) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
