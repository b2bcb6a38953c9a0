"""`ds-train doctor`: exit codes, bad input, the report; on this machine, without ssh."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_train.cli import main


def test_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "doctor.json"
    code = main(["doctor", "--no-all-reduce", "--json", str(report)])
    found = json.loads(report.read_text())
    assert code == (1 if found["failures"] else 0)
    assert list(found["hosts"]) == ["localhost"]
    assert "ok      torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["--hostfile", "nowhere"], 'cluster.hostfile = "nowhere": no such file'),
        (["--need-disk", "much"], "--need-disk: 'much' is not a size; write it like 80 GiB"),
        (["--json", "no/where.json"], "--json = no/where.json: its folder is not there"),
    ],
)
def test_bad_input(arguments: list[str], words: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_failure_is_1(tmp_path: Path, monkeypatch, capsys) -> None:
    """A recipe whose model is missing is no bad input here: to say so is what this is for."""
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(
        "output_dir: run\nmodel: {name_or_path: ./model}\n"
        "data: {train: [{path: ./rows.jsonl}], max_length: 8}\n"
        "train: {global_batch_size: 1, per_device_train_batch_size: 1, max_steps: 1}\n"
    )
    assert main(["doctor", "my.yaml", "--no-all-reduce"]) == 1
    printed = capsys.readouterr().out
    assert f"model.name_or_path = {tmp_path}/model is not there" in " ".join(printed.split())
    assert "-> put it on a file system that all hosts share" in printed
    assert not Path("run").exists()


def test_gpus_of_a_made_up_nvidia_smi(tmp_path: Path, monkeypatch, capsys) -> None:
    """From the program on the PATH to the table: errors of its memory, a process on it."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$1" in\n'
        '*query-gpu*) echo "0, H100, GPU-aa, 570.1, 81559, 1, 0"\n'
        '    echo "1, H100, GPU-bb, 570.1, 81559, 40211, 3";;\n'
        '*) echo "GPU-bb, 4242, 40200, vllm";;\nesac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert main(["doctor", "--no-all-reduce"]) == 1
    printed = capsys.readouterr().out
    assert "localhost: GPU 1: 3 uncorrected ECC errors" in printed
    assert "localhost: GPU 1: vllm (pid 4242, 40200 MiB)" in printed
    assert "2 x H100 on each host" in printed
    assert "-> end it, or exclude that GPU" in printed
