"""The command line as a user meets it: real processes, exit codes, no torch where none is due."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ds_train.cli import main, parse

RECIPE = """\
output_dir: {folder}/run
model: {{name_or_path: org/model}}
data: {{train: [{{path: {folder}/train.jsonl}}], max_length: 128, validation: {{fraction: 0.1}}}}
train: {{global_batch_size: 32, per_device_train_batch_size: 4, max_steps: 20}}
cluster: {{processes_per_node: 2}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "train.jsonl").write_text('{"text": "x"}\n')
    path = tmp_path / "my.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return str(path)


def ds_train(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code is not None else ["-m", "ds_train"]
    return subprocess.run(
        [sys.executable, *start, *arguments], capture_output=True, text=True, timeout=120
    )


def test_validate(recipe: str, tmp_path: Path) -> None:
    done = ds_train("validate", recipe)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "model   org/model, bf16\n"
        "trains  LoRA, rank 8, alpha 16, on all-linear\n"
        "data    1 source, packed into rows of up to 128 tokens, 0.1 of it held out\n"
        "batch   2 processes x 4 rows x 4 micro-batches = 32 rows per step\n"
        "length  20 steps\n"
        "engine  preset zero2 (ZeRO stage 2)\n"
        f"output  {tmp_path}/run\n"
        f"{recipe} is valid\n"
    )
    assert not (tmp_path / "run").exists()


def test_wrong_settings_and_missing_files_are_told_together(recipe: str, tmp_path: Path) -> None:
    done = ds_train("validate", recipe, "train.lr=1", "data.train.0.path=./trian.jsonl")
    assert done.returncode == 2
    faults = done.stderr.splitlines()
    assert faults[0] == "error: 2 faults:"
    assert faults[1].startswith("  train.lr: no such setting; here it is train.learning_rate")
    assert faults[2].startswith('  data.train[0].path = "./trian.jsonl": no such file')


def test_validate_prints_the_resolved_ds_config(recipe: str) -> None:
    done = ds_train("validate", recipe, "engine.preset=zero3", "--ds-config")
    resolved = json.loads(done.stdout)
    assert resolved["zero_optimization"]["stage"] == 3
    assert resolved["train_batch_size"] == 8


def test_faults_of_every_kind_come_at_once(recipe: str) -> None:
    done = ds_train(
        "validate",
        recipe,
        "data.train.0.path=absent.jsonl",
        "train.global_batch_size=30",
        "adapter.method=prompt_tuning",
        "engine.overrides.zero_optimisation.stage=2",
    )
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "error: 4 faults:"
    starts = ["data.train[0].path = ", "data.packing = true", "train.global_batch_size = 30"]
    for line, start in zip(lines[1:], [*starts, "engine.overrides.zero_optimisation"], strict=True):
        assert line.startswith(f"  {start}")


@pytest.mark.parametrize("command", ["validate {recipe}", "--help", "recipes", "train {recipe} -h"])
def test_light_commands_import_nothing_heavy(recipe: str, command: str) -> None:
    code = (
        "import sys; from ds_train.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'deepspeed', 'numpy', 'datasets'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = ds_train(*command.format(recipe=recipe).split(" "), code=code)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout + done.stderr


def test_validate_takes_well_under_a_second(recipe: str) -> None:
    """Processor time, so that a busy machine does not matter; 0.25 s when this was written."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    assert ds_train("validate", recipe).returncode == 0
    assert spent() - before < 0.8


def test_train_dry_run_prints_the_launchers_command(recipe: str, tmp_path: Path, capsys) -> None:
    code = main(["train", recipe, "--dry-run", "train.seed=1", "--", "--master_port", "29777"])
    assert code == 0
    words = capsys.readouterr().out.split()
    assert words[0].endswith("deepspeed")
    assert words[1:3] == ["--num_accelerators", "2"]
    assert words[words.index("--module") :] == (
        ["--module", "ds_train", "train", recipe, "train.seed=1"]
    )
    assert words.count("--master_port") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.yaml", "train.jsonl"]


def test_several_machines_read_one_file_that_says_everything(
    recipe: str, tmp_path: Path, capsys
) -> None:
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    arguments = [f"cluster.hostfile={tmp_path}/hosts", "cluster.processes_per_node=1"]
    arguments.append("adapter.target_modules=[q_proj, v_proj]")
    assert main(["train", recipe, *arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.split()[-1] == f"{tmp_path}/run/recipe.launch.yaml"
    assert not (tmp_path / "run").exists()


def test_faults_stop_train_before_anything_is_written(recipe: str, tmp_path: Path, capsys) -> None:
    assert main(["train", recipe, "train.optim=adafactor"]) == 2
    assert "error: train.optim = adafactor" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_quantization_needs_a_device_here(recipe: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr("ds_train.plan.rules._is_installed", lambda name: True)
    assert main(["train", recipe, "model.quantization=nf4"]) == 2
    assert "needs a CUDA device, and this machine shows none" in capsys.readouterr().err


def test_overrides_and_options_in_any_order() -> None:
    args = parse(["train", "my.yaml", "a.b=1", "--dry-run", "c.d=2", "--", "--num_nodes", "2"])
    assert args.overrides == ["a.b=1", "c.d=2"]
    assert args.dry_run is True
    assert args.launcher_args == ["--num_nodes", "2"]


def test_a_rank_started_by_hand_takes_the_launchers_argument() -> None:
    args = parse(["--local_rank=1", "train", "my.yaml", "a.b=1"])
    assert (args.command, args.recipe, args.overrides) == ("train", "my.yaml", ["a.b=1"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["validate"], "the following arguments are required: recipe"),
        (["trian", "x.yaml"], "invalid choice: 'trian'"),
        (["validate", "x.yaml", "--dry-run"], "unknown argument --dry-run of ds-train validate"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_usage_exits_with_2(arguments, words: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_only_rank_0_reports_at_once(recipe: str, monkeypatch, capsys) -> None:
    slept: list[float] = []
    monkeypatch.setattr("ds_train.cli.time.sleep", slept.append)
    for rank, before in (("0", ""), ("1", "error (rank 1): ")):
        monkeypatch.setenv("RANK", rank)
        assert main(["validate", recipe, "model.dtype=bf17"]) == 2
        assert capsys.readouterr().err.startswith(before or "error: model.dtype")
    assert slept == [5.0]


def test_ctrl_c_and_broken_pipe(recipe: str, monkeypatch, capsys) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("ds_train.commands.validate.run", interrupted)
    assert main(["validate", recipe]) == 130
    done = subprocess.run(
        f"{sys.executable} -m ds_train validate {recipe} --resolved | head -1; "
        "echo ${PIPESTATUS[0]}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"output_dir: {Path(recipe).parent}/run", "0"]


def test_recipes(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    assert "lora_sft_messages\n    LoRA on conversations" in capsys.readouterr().out
    assert main(["recipes", "copy", "lora_sft_messages", "my.yaml"]) == 0
    assert (tmp_path / "my.yaml").is_file()
    assert main(["recipes", "copy", "lora_sft_messages", "my.yaml"]) == 2
    assert main(["recipes", "show", "lora_sft_messages"]) == 0
    assert (tmp_path / "my.yaml").read_text() in capsys.readouterr().out


def test_version() -> None:
    done = ds_train("--version")
    assert done.stdout.startswith("ds-train 0.")


def test_the_installed_script_is_the_same_program() -> None:
    script = Path(sys.executable).parent / "ds-train"
    if not script.is_file():
        pytest.skip("ds-train is not installed in this environment")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0
