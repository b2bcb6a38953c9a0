"""Messages of bad data, word for word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_train.config.run import RunConfig
from ds_train.data.prepare import prepare_data
from ds_train.errors import DsTrainError, InputError

GOOD = '{"prompt": "2 + 3?", "completion": " 5"}\n'


def _recipe(model: Path, folder: Path, train: list[dict[str, Any]], **data: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output_dir": str(folder / "run"),
            "model": {"name_or_path": str(model)},
            "data": {"train": train, "max_length": 512, "cache_dir": str(folder / "cache"), **data},
            "train": {"max_steps": 10},
        }
    )


def _message(model: Path, folder: Path, source: dict[str, Any], **data: Any) -> str:
    """What the user reads; the temporary folder is written as DIR, the model as MODEL."""
    with pytest.raises(DsTrainError) as caught:
        prepare_data(_recipe(model, folder, [source], **data), say=lambda text: None)
    assert isinstance(caught.value, InputError) and caught.value.exit_code == 2
    return str(caught.value).replace(str(folder), "DIR").replace(str(model), "MODEL")


def _file(folder: Path, name: str, text: str) -> dict[str, Any]:
    (folder / name).write_text(text, encoding="utf-8")
    return {"path": str(folder / name)}


def test_missing_file(stories260k: Path, tmp_path: Path) -> None:
    _file(tmp_path, "train.jsonl", GOOD)
    assert _message(stories260k, tmp_path, {"path": str(tmp_path / "trian.jsonl")}) == (
        'data.train[0].path = "DIR/trian.jsonl": no such file; did you mean train.jsonl?'
    )


def test_glob_without_a_match(stories260k: Path, tmp_path: Path) -> None:
    assert _message(stories260k, tmp_path, {"path": str(tmp_path / "*.jsonl")}) == (
        'data.train[0].path = "DIR/*.jsonl": no file matches.'
    )


def test_folder_that_is_no_dataset(stories260k: Path, tmp_path: Path) -> None:
    assert _message(stories260k, tmp_path, {"path": str(tmp_path)}) == (
        'data.train[0].path = "DIR": a folder, but not a saved dataset; name its files, for '
        'example "DIR/*.jsonl".'
    )


def test_unknown_kind_of_file(stories260k: Path, tmp_path: Path) -> None:
    source = _file(tmp_path, "train.docx", "x")
    assert _message(stories260k, tmp_path, source) == (
        'data.train[0].path = "DIR/train.docx": unknown kind of file ".docx"; known: .jsonl, '
        ".ndjson, .json, .csv, .tsv, .parquet, .txt, .md, each also with .gz, .bz2, .xz, .zst."
    )


def test_broken_jsonl_line(stories260k: Path, tmp_path: Path) -> None:
    source = _file(tmp_path, "train.jsonl", GOOD + '{"prompt": "2 + 4?", "completion": 6\n')
    assert _message(stories260k, tmp_path, source) == (
        "data.train[0].path = \"DIR/train.jsonl\": line 2 is not valid JSON (Expecting ',' "
        'delimiter at character 37): {"prompt": "2 + 4?", "completion": 6'
    )


def test_wrong_column(stories260k: Path, tmp_path: Path) -> None:
    source = _file(tmp_path, "train.jsonl", '{"promt": "a", "completion": "b"}\n')
    assert _message(stories260k, tmp_path, source | {"format": "prompt_completion"}) == (
        'data.train[0].path = "DIR/train.jsonl": line 1 has no column "prompt", which format '
        "prompt_completion needs; it has promt, completion. Name the right one: "
        "columns: {prompt: promt}"
    )


def test_unknown_role(stories260k: Path, tmp_path: Path) -> None:
    row = {"messages": [{"role": "humn", "content": "hi"}]}
    source = _file(tmp_path, "chats.jsonl", json.dumps(row) + "\n")
    assert _message(stories260k, tmp_path, source, chat_template="plain") == (
        'data.train[0].path = "DIR/chats.jsonl": line 1 has role "humn"; '
        "known roles: system, user, assistant, tool."
    )


def test_no_chat_template(stories260k: Path, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}]}
    source = _file(tmp_path, "chats.jsonl", json.dumps(row) + "\n")
    assert _message(stories260k, tmp_path, source) == (
        "data.train[0]: format messages needs a chat template, and the tokenizer has none; "
        "set data.chat_template (chatml, plain, a file, or Jinja text)."
    )


def test_unknown_chat_template(stories260k: Path, tmp_path: Path) -> None:
    source = _file(tmp_path, "train.jsonl", GOOD)
    assert _message(stories260k, tmp_path, source, chat_template="chatmel") == (
        'data.chat_template = "chatmel": no such file, and no builtin template; builtin: '
        "chatml, plain. It may also be Jinja text."
    )


def test_broken_chat_template(stories260k: Path, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}]}
    source = _file(tmp_path, "chats.jsonl", json.dumps(row) + "\n")
    assert _message(stories260k, tmp_path, source, chat_template="{% for m in messages %}") == (
        "data.chat_template: line 1 of the template (the recipe's Jinja text) is not valid Jinja: "
        "Unexpected end of template. Jinja was looking for the following tags: 'endfor' or "
        "'else'. The innermost block that needs to be closed is 'for'."
    )


def test_template_that_can_not_be_masked(stories260k: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    source = _file(tmp_path, "chats.jsonl", json.dumps({"messages": turns}) + "\n")
    template = "{% for m in messages | reverse %}{{ m.role + m.content }}{% endfor %}"
    assert _message(stories260k, tmp_path, source, chat_template=template) == (
        'data.train[0].path = "DIR/chats.jsonl": line 1: the chat template (the recipe\'s Jinja '
        "text) can't be masked safely: message 2 does not follow the generation prompt. Put "
        "{% generation %} ... {% endgeneration %} around what the assistant says in the template "
        "(data.chat_template), or try data.loss_on: last_assistant."
    )


def test_empty_file(stories260k: Path, tmp_path: Path) -> None:
    assert _message(stories260k, tmp_path, _file(tmp_path, "train.jsonl", "\n")) == (
        'data.train[0].path = "DIR/train.jsonl": no rows; an empty source can\'t be trained on.'
    )


def test_nothing_supervised(stories260k: Path, tmp_path: Path) -> None:
    source = _file(tmp_path, "train.jsonl", '{"prompt": "a", "completion": " "}\n')
    assert _message(stories260k, tmp_path, source) == (
        "data.train[0] (train.jsonl): nothing can be learned from its 1 row: 1 without a token "
        "that loss_on = completion learns from (see whether the answers are empty)."
    )


def test_max_length_over_the_models(stories260k: Path, tmp_path: Path) -> None:
    source = _file(tmp_path, "train.jsonl", GOOD)
    assert _message(stories260k, tmp_path, source, max_length=4096) == (
        'data.max_length = 4,096: the model "MODEL" reads at most 512 positions; '
        "set data.max_length to 512 or less."
    )


def test_too_little_data_to_divide(stories260k: Path, tmp_path: Path) -> None:
    source = _file(tmp_path, "train.jsonl", GOOD)
    few = _message(stories260k, tmp_path, source, validation={"fraction": 0.001})
    assert few == (
        "data.validation.fraction = 0.001: none of the 1 samples would be held out; take a "
        "larger fraction, or give data.validation.sources."
    )
    many = _message(stories260k, tmp_path, source, validation={"fraction": 0.999})
    assert many == (
        "data.validation.fraction = 0.999: nothing of data.train[0] (train.jsonl, 1 samples) is "
        "left to train on; take a smaller fraction."
    )


def test_faults_of_several_sources_are_reported_at_once(stories260k: Path, tmp_path: Path) -> None:
    config = _recipe(
        stories260k,
        tmp_path,
        [{"path": str(tmp_path / "a.txt")}, {"path": str(tmp_path / "b.csv")}],
    )
    with pytest.raises(InputError) as caught:
        prepare_data(config, say=lambda text: None)
    assert str(caught.value).replace(str(tmp_path), "DIR") == (
        'data.train[0].path = "DIR/a.txt": no such file.\n'
        'data.train[1].path = "DIR/b.csv": no such file.'
    )


def test_cache_folder_that_can_not_be_written(stories260k: Path, tmp_path: Path) -> None:
    source = _file(tmp_path, "train.jsonl", GOOD)
    (tmp_path / "cache").write_text("a file stands here")
    assert _message(stories260k, tmp_path, source) == (
        'data.cache_dir = "DIR/cache": File exists; free some space or choose another folder '
        "with data.cache_dir or $DS_TRAIN_CACHE."
    )
