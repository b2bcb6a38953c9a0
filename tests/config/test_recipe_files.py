"""Files that a recipe names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ds_train.config.files import check_files, looks_like_path
from ds_train.config.load import config_from_dict


def config_in(folder: Path, **changes: object):
    raw = {
        "output_dir": str(folder / "run"),
        "model": {"name_or_path": "org/model"},
        "data": {"train": [{"path": "org/dataset"}]},
        "train": {"max_steps": 1},
    }
    return config_from_dict({**raw, **changes})


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("org/name", False),
        ("name", False),
        ("gpt2", False),
        ("./name", True),
        ("../a/b", True),
        ("/a", True),
        ("~/a", True),
        ("a/b/c", True),
        ("train.jsonl", True),
        ("data/*.parquet", True),
        ("data/train.json.gz", True),
        ("folder/", True),
        ("meta-llama/Llama-3.1-8B", False),
    ],
)
def test_hub_names_and_paths(text: str, is_path: bool) -> None:
    assert looks_like_path(text) is is_path


def test_hub_names_are_left_to_the_hub(tmp_path: Path) -> None:
    assert check_files(config_in(tmp_path)) == []


def test_missing_files_are_named_with_the_nearest(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "empty.jsonl").touch()
    paths = ["trian.jsonl", "no/such.csv", "*.parquet", "empty.jsonl", "train.jsonl", "*.jsonl"]
    found = check_files(config_in(tmp_path, data={"train": [{"path": paths}]}))
    assert found == [
        f'data.train[0].path[0] = "trian.jsonl": no such file or folder in {tmp_path}. '
        "Did you mean train.jsonl?",
        f'data.train[0].path[1] = "no/such.csv": no such file or folder in {tmp_path}; '
        "there is no folder no either.",
        f'data.train[0].path[2] = "*.parquet": no file matches in {tmp_path}.',
        'data.train[0].path[3] = "empty.jsonl": the file is empty.',
    ]


def test_model_folders(tmp_path: Path) -> None:
    bare, half = tmp_path / "bare", tmp_path / "half"
    bare.mkdir()
    half.mkdir()
    (half / "config.json").write_text("{}")
    (tmp_path / "file").write_text("x")

    def one(model: dict[str, object]) -> str:
        (fault,) = check_files(config_in(tmp_path, model=model))
        return fault

    assert "has no config.json" in one({"name_or_path": str(bare)})
    assert "no weights" in one({"name_or_path": str(half)})
    assert "is a file" in one({"name_or_path": str(tmp_path / "file")})
    assert "no such folder" in one({"name_or_path": str(tmp_path / "absent")})
    random = {"name_or_path": str(half), "init": "random"}
    assert check_files(config_in(tmp_path, model=random)) == []


def test_output_dir(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (fault,) = check_files(config_in(tmp_path, output_dir=str(tmp_path / "file" / "run")))
    assert "is a file; name a folder" in fault
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if not os.access(closed, os.W_OK):  # root may write everywhere
        (fault,) = check_files(config_in(tmp_path, output_dir=str(closed / "run")))
        assert "is not writable" in fault


def test_other_files(tmp_path: Path) -> None:
    found = check_files(
        config_in(
            tmp_path,
            engine={"config": str(tmp_path / "ds.json")},
            cluster={"hostfile": str(tmp_path)},
            adapter={"path": str(tmp_path / "adapter")},
            data={"train": [{"path": "org/x"}], "chat_template": "./t.jinja"},
        )
    )
    assert [text.split(" = ")[0] for text in found] == [
        "adapter.path",
        "engine.config",
        "cluster.hostfile",
        "data.chat_template",
    ]


def test_jinja_text_is_no_file(tmp_path: Path) -> None:
    data = {"train": [{"path": "org/x"}], "chat_template": "{% for m in messages %}{% endfor %}"}
    assert check_files(config_in(tmp_path, data=data)) == []


@pytest.mark.parametrize(
    "facts",
    [
        {"max_position_embeddings": 512},
        {"n_positions": 512},
        {"text_config": {"max_position_embeddings": 512}, "max_position_embeddings": 9},
    ],
)
def test_rows_longer_than_the_model_reads(tmp_path: Path, facts: dict[str, object]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(facts))
    (model / "model.safetensors").write_text("x")
    data: dict[str, object] = {"train": [{"path": "org/dataset"}]}

    def faults(max_length: int) -> list[str]:
        data["max_length"] = max_length
        return check_files(config_in(tmp_path, model={"name_or_path": str(model)}, data=data))

    assert faults(512) == []
    assert faults(513) == [
        f'data.max_length = 513: the model "{model}" reads at most 512 positions; '
        "set data.max_length to 512 or less."
    ]


def test_virtual_tokens_need_positions_too(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"n_positions": 512}')
    (model / "model.safetensors").write_text("x")

    def faults(max_length: int) -> list[str]:
        return check_files(
            config_in(
                tmp_path,
                model={"name_or_path": str(model)},
                data={"train": [{"path": "org/dataset"}], "max_length": max_length},
                adapter={"method": "prompt_tuning", "num_virtual_tokens": 20},
            )
        )

    assert faults(492) == []
    assert faults(493) == [
        f'data.max_length = 493 with adapter.num_virtual_tokens = 20: the model "{model}" reads '
        "at most 512 positions; set data.max_length to 492 or less."
    ]


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "LORA"])
def test_only_lora_and_ia3_are_continued(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    faults = check_files(config_in(tmp_path, adapter={"path": str(folder)}))
    refused = [
        f'adapter.path = "{folder}": is of kind {kind}, and only LoRA and IA3 adapters can be '
        "continued; remove adapter.path and set adapter.method to train a new one."
    ]
    assert faults == ([] if kind == "LORA" else refused)
