"""Messages of bad input, word for word, as a user meets them: `ds-train ...` in a folder.

A case says what is wrong in the folder, what is typed, and what stands on stderr: that and nothing
else. Whatever the case, the exit code is 2, nothing is launched and nothing written to output_dir.
tests/messages/ holds more messages, of one part each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_run import adapter_run
from peft import LoraConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file

from ds_train.cli import main
from ds_train.config.adapter import AdapterConfig
from ds_train.config.load import load_recipe
from ds_train.config.model import ModelConfig
from ds_train.config.recipes import bundled_recipes
from ds_train.data.encode import open_tokenizer
from ds_train.data.prepare import prepare_data
from ds_train.errors import InputError
from ds_train.model.adapter import choose_trainable
from ds_train.model.check import load_architecture
from ds_train.model.files import base_fingerprint
from ds_train.model.load import load_model
from ds_train.model.tiny import save_tiny, tiny_model
from ds_train.model.tokenizer import pad_token_id
from ds_train.plan.presets import ds_configs_dir

RECIPE = """\
output_dir: run
model: {name_or_path: ./model, dtype: fp32}
data:
  train:
  - path: train.jsonl
  max_length: 128
  cache_dir: cache
train:
  global_batch_size: 16
  per_device_train_batch_size: 4
  max_steps: 10
cluster: {processes_per_node: 2}
"""
ROWS = '{"prompt": "2 + 3?", "completion": " 5"}\n' * 20
CHAT = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}\n'

UNMASKABLE = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, one in a single file and one in several."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "model")
    save_tiny(folder / "sharded", shard_size="100KB")
    return folder


@pytest.fixture
def here(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with a recipe, data and a model, in which training would start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr("ds_train.train.start.run_launcher", _refuse_launch)
    Path("my.yaml").write_text(RECIPE)
    Path("train.jsonl").write_text(ROWS)
    Path("bad.jinja").write_text(UNMASKABLE)
    Path("empty").mkdir()
    shutil.copytree(models / "model", "model")
    shutil.copytree(models / "sharded", "sharded")
    return tmp_path


def _refuse_launch(*args: Any, **kwargs: Any) -> int:
    raise AssertionError("the fault came through to the launch")


# What is wrong in the folder


def recipe(old: str, new: str) -> Callable[[], None]:
    """The recipe with one text replaced."""

    def arrange() -> None:
        assert old in RECIPE
        Path("my.yaml").write_text(RECIPE.replace(old, new, 1))

    return arrange


def data(text: str) -> Callable[[], None]:
    """Other training data."""
    return lambda: _write("train.jsonl", text)


def _write(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")


def edit_json(path: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    """One JSON file changed."""

    def arrange() -> None:
        content = json.loads(Path(path).read_text())
        change(content)
        Path(path).write_text(json.dumps(content))

    return arrange


def cut(path: str, num_bytes: int) -> Callable[[], None]:
    """A file of which only the start is there."""
    return lambda: os.truncate(path, num_bytes)


def remove(path: str) -> Callable[[], None]:
    """A file that is gone."""
    return lambda: Path(path).unlink()


def add_ids(folder: str, *tokens: str) -> Callable[[], None]:
    """A tokenizer with more ids than the model."""

    def arrange() -> None:
        tokenizer = open_tokenizer(ModelConfig(name_or_path=folder))
        tokenizer.add_tokens(list(tokens))
        tokenizer.save_pretrained(folder)

    return arrange


def earlier_run(**changes: Any) -> Callable[[], None]:
    """A run in output_dir with a checkpoint, made by the recipe; `changes` to its run.json."""

    def arrange() -> None:
        config = load_recipe("my.yaml")
        data = prepare_data(config, say=lambda text: None)
        shutil.rmtree("cache")
        Path("run/checkpoints/step-00000005").mkdir(parents=True)
        shutil.copy("my.yaml", "run/recipe.yaml")
        facts = {"global_batch_size": 16, "base_fingerprint": base_fingerprint(config.model)}
        facts |= {"data_fingerprint": data.fingerprint} | changes
        _write("run/run.json", json.dumps(facts))

    return arrange


def adapter(method: str) -> Callable[[], None]:
    """A trained adapter in run/."""

    def arrange() -> None:
        config: Any = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
        if method == "prompt_tuning":
            config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        adapter_run(Path("run"), Path("model"), config)

    return arrange


def all_of(*arrangements: Callable[[], None]) -> Callable[[], None]:
    """Several things at once."""

    def arrange() -> None:
        for one in arrangements:
            one()

    return arrange


def nothing() -> None:
    """All is well in the folder; what is typed is wrong."""


class Case(NamedTuple):
    """One kind of bad input."""

    name: str
    arrange: Callable[[], None]
    typed: str
    message: str
    """What is on stderr; DIR stands for the working folder."""


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 500000\n"

CASES = [
    Case(
        "bad YAML",
        recipe("cluster: {", "cluster: {hostfile: [}"),
        "validate my.yaml",
        "my.yaml, line 12, column 22: not valid YAML: expected the node content, but "
        "found '}'; check brackets, quotes and indentation above this place.",
    ),
    Case(
        "duplicate key",
        recipe("  max_steps: 10", "  max_steps: 10\n  max_steps: 20"),
        "validate my.yaml",
        "my.yaml, line 12: train.max_steps is written twice (first on line 11); remove "
        "one of them.",
    ),
    Case(
        "unknown key",
        recipe("  max_steps: 10", "  max_stepz: 10"),
        "validate my.yaml",
        "train.max_stepz: no such setting. Did you mean train.max_steps? (my.yaml, line 11)",
    ),
    Case(
        "other tools' names",
        recipe("  max_length: 128", "  sequence_len: 128\n  micro_batch_size: 4"),
        "validate my.yaml",
        "2 faults:\n"
        "  data.sequence_len: no such setting; here it is data.max_length (my.yaml, "
        "line 6).\n"
        "  data.micro_batch_size: no such setting; here it is "
        "train.per_device_train_batch_size (my.yaml, line 7).",
    ),
    Case(
        "wrong type",
        recipe("max_steps: 10", "max_steps: soon"),
        "validate my.yaml",
        'train.max_steps = "soon": is not a number; write it like 4096, 4k, 2^12 or '
        "1.5B (my.yaml, line 11).",
    ),
    Case(
        "batch that does not divide",
        nothing,
        "validate my.yaml train.global_batch_size=20",
        "train.global_batch_size = 20 does not divide into 2 processes x 4 rows = 8. "
        "Nearest that do: 16 or 24; or set train.per_device_train_batch_size to 2 or "
        "5.",
    ),
    Case(
        "processes that can't share rows",
        nothing,
        "validate my.yaml engine.sequence_parallel_size=4",
        "engine.sequence_parallel_size = 4 must divide the 2 processes; set it to 1 or 2, or start "
        "another number of processes.",
    ),
    Case(
        "heads that can't be shared out",
        nothing,
        "train my.yaml engine.sequence_parallel_size=3 cluster.processes_per_node=3",
        "engine.sequence_parallel_size = 3 must divide the model's 4 attention heads, which the "
        "ranks share out; sizes that do: 1, 2, 4.",
    ),
    Case(
        "missing recipe", nothing, "train mi.yaml", "mi.yaml: no such file. Did you mean my.yaml?"
    ),
    Case(
        "missing data file",
        nothing,
        "train my.yaml data.train.0.path=trian.jsonl",
        'data.train[0].path = "trian.jsonl": no such file or folder in DIR. Did you '
        "mean train.jsonl?",
    ),
    Case(
        "glob without a match",
        nothing,
        "data my.yaml data.train.0.path=more/*.jsonl",
        'data.train[0].path = "more/*.jsonl": no file matches in DIR.',
    ),
    Case(
        "broken JSONL line",
        data(ROWS + '{"prompt": "2 + 4?", "completion": \n'),
        "data my.yaml",
        'data.train[0].path = "train.jsonl": line 21 is not valid JSON (Expecting value '
        'at character 35): {"prompt": "2 + 4?", "completion":',
    ),
    Case(
        "wrong column",
        nothing,
        "data my.yaml data.train.0.format=question_answer",
        'data.train[0].path = "train.jsonl": line 1 has no column "question", which '
        "format question_answer needs; it has prompt, completion. Name the right one: "
        "columns: {question: ...}",
    ),
    Case(
        "unknown format",
        data('{"a": 1, "b": 2}\n'),
        "data my.yaml",
        'data.train[0].path = "train.jsonl": line 1 has the columns a, b, which fit no '
        "known format; set data.train[0].format and data.train[0].columns. Formats and "
        "their fields: messages (messages); sharegpt (conversations); alpaca "
        "(instruction, output); prompt_completion (prompt, completion); "
        "question_answer (question, answer); text (text); classification (text, "
        "label); multiple_choice (prompt, choices, answer).",
    ),
    Case(
        "column missing later",
        data(ROWS + '{"prompt": "2 + 4?"}\n'),
        "data my.yaml",
        'data.train[0].path = "train.jsonl": line 21 has no column "completion"; it has prompt.',
    ),
    Case(
        "number for text",
        data(ROWS + '{"prompt": "2 + 4?", "completion": 6}\n'),
        "data my.yaml",
        'data.train[0].path = "train.jsonl": line 21 has the number 6 in column '
        '"completion", which must be text.',
    ),
    Case(
        "unknown role",
        data(CHAT + CHAT.replace('"user"', '"humn"')),
        "data my.yaml data.chat_template=plain",
        'data.train[0].path = "train.jsonl": line 2 has role "humn"; known roles: '
        "system, user, assistant, tool.",
    ),
    Case(
        "empty file",
        data(""),
        "train my.yaml",
        'data.train[0].path = "train.jsonl": the file is empty.',
    ),
    Case(
        "no rows",
        data("\n\n"),
        "train my.yaml",
        'data.train[0].path = "train.jsonl": no rows; an empty source can\'t be trained on.',
    ),
    Case(
        "nothing fits",
        data('{"prompt": "%s", "completion": "b"}\n' % ("a" * 200)),
        "train my.yaml",
        "data.train[0] (train.jsonl): nothing can be learned from its 1 row: 1 longer "
        "than data.max_length = 128 (raise it, or set data.over_length: truncate or "
        "split).",
    ),
    Case(
        "all masked",
        data('{"prompt": "a", "completion": ""}\n' * 5),
        "train my.yaml",
        "data.train[0] (train.jsonl): nothing can be learned from its 5 rows: 5 without "
        "a token that loss_on = completion learns from (see whether the answers are "
        "empty).",
    ),
    Case(
        "too long",
        data('{"prompt": "%s", "completion": "b"}\n' % ("a" * 200)),
        "train my.yaml data.over_length=error",
        'data.train[0].path = "train.jsonl": line 1 has 203 tokens, but data.max_length '
        "= 128; raise it, or set data.over_length to drop, truncate or split.",
    ),
    Case(
        "tokenizer without eos",
        edit_json("model/tokenizer_config.json", lambda c: c.pop("eos_token")),
        "train my.yaml",
        'model: the tokenizer of "./model" has no end-of-sequence token (eos_token), so '
        'no answer could ever end; set "eos_token" in its tokenizer_config.json.',
    ),
    Case(
        "max_length over the model's",
        nothing,
        "train my.yaml data.max_length=512",
        'data.max_length = 512: the model "./model" reads at most 256 positions; set '
        "data.max_length to 256 or less.",
    ),
    Case(
        "missing model",
        nothing,
        "train my.yaml model.name_or_path=./modle",
        'model.name_or_path = "./modle": no such folder in DIR. Did you mean model?',
    ),
    Case(
        "model without weights",
        remove("model/model.safetensors"),
        "train my.yaml",
        'model.name_or_path = "./model": the folder has a config.json but no weights '
        "(*.safetensors); set model.init: random to train from scratch.",
    ),
    Case(
        "model without config",
        remove("model/config.json"),
        "train my.yaml",
        'model.name_or_path = "./model": the folder has no config.json; it is not of '
        "Hugging Face format.",
    ),
    Case(
        "broken config.json",
        lambda: _write("model/config.json", "{"),
        "train my.yaml",
        "model/config.json: is not valid JSON (Expecting property name enclosed in "
        "double quotes: line 1 column 2 (char 1)); copy it again.",
    ),
    Case(
        "unknown architecture",
        edit_json("model/config.json", lambda c: c.update(model_type="lama")),
        "train my.yaml",
        'model/config.json: model_type = "lama": the installed transformers does not '
        "know it; correct it, or install a version that does. Did you mean llama?",
    ),
    Case(
        "model without tokenizer",
        all_of(remove("model/tokenizer.json"), remove("model/tokenizer_config.json")),
        "train my.yaml",
        'model.name_or_path = "./model": no tokenizer could be read there; put its '
        "files (tokenizer.json, tokenizer_config.json) beside the model, or set "
        "model.tokenizer_name_or_path.",
    ),
    Case(
        "weights cut off",
        cut("model/model.safetensors", 5000),
        "train my.yaml",
        "model/model.safetensors: is cut off: its header tells of 381,792 bytes, the "
        "file has 5,000; copy it again.",
    ),
    Case(
        "empty weight file",
        cut("model/model.safetensors", 0),
        "train my.yaml",
        "model/model.safetensors: is not a safetensors file (it has 0 bytes); copy it again.",
    ),
    Case(
        "missing shard",
        remove("sharded/model-00002-of-00004.safetensors"),
        "train my.yaml model.name_or_path=sharded",
        'model.name_or_path = "sharded": model.safetensors.index.json names 4 files, '
        "but model-00002-of-00004.safetensors is missing; copy the model folder again.",
    ),
    Case(
        "broken index",
        lambda: _write("sharded/model.safetensors.index.json", "{"),
        "train my.yaml model.name_or_path=sharded",
        'model.name_or_path = "sharded": model.safetensors.index.json is no index of '
        "weight files; copy it again.",
    ),
    Case(
        "weights as LFS pointer",
        lambda: _write("model/model.safetensors", LFS),
        "train my.yaml",
        "model/model.safetensors: is a Git LFS pointer, not the weights; run git lfs "
        'pull in "model".',
    ),
    Case(
        "data as LFS pointer",
        lambda: _write("train.jsonl", LFS),
        "train my.yaml",
        'data.train[0].path = "train.jsonl": is a Git LFS pointer, not the data; run '
        "git lfs pull where it was cloned.",
    ),
    Case(
        "tokenizer with more ids",
        add_ids("model", "<x>", "<y>"),
        "train my.yaml",
        'model.name_or_path = "./model": its tokenizer has ids up to 260, but its '
        "embedding has 259 rows; use the tokenizer that belongs to the model.",
    ),
    Case(
        "output that can not be written",
        nothing,
        "train my.yaml output_dir=train.jsonl/run",
        'output_dir = "train.jsonl/run": train.jsonl is a file; name a folder.',
    ),
    Case(
        "another recipe",
        earlier_run(),
        "train my.yaml train.learning_rate=1e-5 adapter.r=4",
        'output_dir = "run" holds a run of another recipe:\n'
        "  adapter.r: 8 -> 4\n"
        "  train.learning_rate: 0.0001 -> 1e-05\n"
        "  Go on with the old values, or choose another output_dir.",
    ),
    Case(
        "another batch",
        earlier_run(),
        "train my.yaml train.global_batch_size=32",
        'output_dir = "run" holds a run of another recipe:\n'
        "  rows per optimizer step: 16 -> 32\n"
        "  Go on with the old values, or choose another output_dir.",
    ),
    Case(
        "changed data",
        all_of(earlier_run(), data(ROWS * 2)),
        "train my.yaml",
        'output_dir = "run": the data changed since this run began (fingerprint HASH, '
        "now HASH); restore the old files, or choose another output_dir.",
    ),
    Case(
        "changed base",
        earlier_run(base_fingerprint="0123456789abcdef"),
        "train my.yaml",
        'output_dir = "run": the base model\'s weights changed since this run began '
        "(fingerprint HASH, now HASH); restore the old files, or choose another "
        "output_dir.",
    ),
    Case(
        "bad hostfile",
        lambda: _write("hosts", "worker-0 slots=8\nworker-1 8\nworker-0 slots=4\n"),
        "train my.yaml cluster.hostfile=hosts",
        "2 faults:\n"
        '  cluster.hostfile = "hosts": line 2 is "worker-1 8"; write it like worker-0 '
        "slots=8.\n"
        '  cluster.hostfile = "hosts": line 3 names worker-0 again (first on line 1).',
    ),
    Case(
        "unknown preset",
        nothing,
        "train my.yaml engine.preset=zero_3",
        'engine.preset = "zero_3": no such preset; there are zero0, zero1, zero2, '
        "zero2_bf16_states, zero2_offload_cpu, zero3, zero3_bf16_states, zero3_offload_cpu, "
        "zero3_offload_nvme, zeropp. Did you mean zero3?",
    ),
    Case(
        "unknown DeepSpeed key",
        nothing,
        "validate my.yaml engine.overrides.zero_optimization.overlap_com=true",
        "engine.overrides.zero_optimization.overlap_com: DeepSpeed has no such setting. "
        "Did you mean zero_optimization.overlap_comm?",
    ),
    Case(
        "removed DeepSpeed key",
        nothing,
        "validate my.yaml engine.overrides.zero_optimization.cpu_offload=true",
        "engine.overrides.zero_optimization.cpu_offload: is the old name; use "
        "offload_optimizer: {device: cpu}.",
    ),
    Case(
        "bad DeepSpeed value",
        nothing,
        "validate my.yaml engine.overrides.zero_optimization.stage=4",
        "engine.overrides.zero_optimization.stage = 4: must be one of 0, 1, 2, 3.",
    ),
    Case(
        "PiSSA under ZeRO-3",
        nothing,
        "validate my.yaml adapter.init=pissa engine.preset=zero3",
        "adapter.init = pissa with ZeRO stage 3: it takes the principal components of "
        "whole weights, which are sharded there; set engine.preset: zero2, or "
        "adapter.init: default.",
    ),
    Case(
        "packing with prefix tuning",
        nothing,
        "validate my.yaml adapter.method=prefix_tuning",
        "data.packing = true with adapter.method = prefix_tuning: the virtual tokens "
        "stand before the row, where only its first document would see them; set "
        "data.packing: false.",
    ),
    Case(
        "Adafactor under ZeRO-2",
        nothing,
        "validate my.yaml train.optim=adafactor",
        "train.optim = adafactor with ZeRO stage 2: ZeRO flattens the parameters, so "
        "its factored second moment is lost and the update depends on the number of "
        "ranks; set engine.preset: zero0, or train.optim: adamw.",
    ),
    Case(
        "QLoRA without bitsandbytes",
        nothing,
        "train my.yaml model.quantization=nf4",
        "model.quantization = nf4: the package bitsandbytes is not installed; run pip "
        "install 'ds-train[qlora]', or set quantization: none.",
    ),
    Case(
        "bad regular expression",
        nothing,
        "validate my.yaml adapter.target_modules=q_proj(",
        'adapter.target_modules = "q_proj(": not a regular expression: missing ), '
        "unterminated subpattern at position 6.",
    ),
    Case(
        "chats without template",
        data(CHAT),
        "train my.yaml",
        "data.train[0]: format messages needs a chat template, and the tokenizer has "
        "none; set data.chat_template (chatml, plain, a file, or Jinja text).",
    ),
    Case(
        "template that can not be masked",
        data(CHAT),
        "train my.yaml data.chat_template=bad.jinja",
        'data.train[0].path = "train.jsonl": line 1: the chat template (file bad.jinja) '
        "can't be masked safely: message 2 does not follow the generation prompt. Put "
        "{% generation %} ... {% endgeneration %} around what the assistant says in "
        "the template (data.chat_template), or try data.loss_on: last_assistant.",
    ),
    Case(
        "evaluate a file",
        nothing,
        "evaluate train.jsonl",
        '"train.jsonl": is a file; name a run, adapter or model folder.',
    ),
    Case(
        "evaluate nothing",
        nothing,
        "evaluate ./absent",
        '"./absent": no such folder; name a run, adapter or model folder.',
    ),
    Case(
        "evaluate another folder",
        nothing,
        "evaluate empty",
        '"empty": neither a run (recipe.yaml), nor an adapter (adapter_config.json), '
        "nor a model (config.json).",
    ),
    Case(
        "export another folder",
        nothing,
        "export empty",
        '"empty" is not a run folder: it has no recipe.yaml. Give the output_dir of a run.',
    ),
    Case(
        "export nothing",
        nothing,
        "export absent",
        '"absent" is not a run folder: it has no recipe.yaml. Give the output_dir of a run.',
    ),
    Case(
        "generate from another folder",
        nothing,
        "generate empty hello",
        '"empty": neither a run (recipe.yaml), nor an adapter (adapter_config.json), '
        "nor a model (config.json).",
    ),
    Case(
        "merge of prompt tuning",
        adapter("prompt_tuning"),
        "export run --merge",
        '--merge: the adapter in "run/checkpoints/step-00000050" is PROMPT_TUNING: it '
        "puts learned vectors before the input and changes no weight, so there is "
        "nothing to merge into. Export without --merge and load it with PEFT over the "
        "base model.",
    ),
    Case(
        "export over a folder",
        adapter("lora"),
        "export run --merge --output model",
        "--output model: already there and not empty, and nothing is overwritten. "
        "Remove it or choose another folder.",
    ),
    Case(
        "unknown checkpoint",
        adapter("lora"),
        "export run --checkpoint step-7",
        '--checkpoint step-7: "run" has no such complete checkpoint; it has latest, step-00000050.',
    ),
    Case(
        "unknown recipe name",
        nothing,
        "recipes copy lora_sft_mesages",
        'recipe "lora_sft_mesages": no such bundled recipe; there are: NAMES. Did you '
        "mean lora_sft_messages?",
    ),
    Case(
        "copy over a file",
        nothing,
        "recipes copy lora_sft_messages my.yaml",
        "my.yaml: is there already; name another file.",
    ),
    Case(
        "tracker not installed",
        nothing,
        "validate my.yaml report.trackers=[wandb]",
        "report.trackers: the package wandb is not installed; run pip install "
        "'ds-train[wandb]', or remove it.",
    ),
    Case(
        "unknown tracker",
        nothing,
        "validate my.yaml report.trackers=[comet]",
        'report.trackers[0] = "comet": must be one of tensorboard, wandb, mlflow (on '
        "the command line).",
    ),
    Case(
        "step after the end",
        nothing,
        "data my.yaml --step 99",
        "--step 99: the run has steps 1 to 10; name one of them.",
    ),
    Case(
        "several faults",
        recipe("max_steps: 10", "max_steps: soon\n  lr: 1e-3"),
        "validate my.yaml adapter.r=0 data.train.0.path=x.jsonl",
        "3 faults:\n"
        "  adapter.r = 0: must be at least 1 (on the command line).\n"
        '  train.max_steps = "soon": is not a number; write it like 4096, 4k, 2^12 or '
        "1.5B (my.yaml, line 11).\n"
        "  train.lr: no such setting; here it is train.learning_rate (my.yaml, line "
        "12).",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_message(here: Path, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    case.arrange()
    before = _tree(here / "run")
    capfd.readouterr()
    assert main(case.typed.split()) == 2
    out, err = capfd.readouterr()
    assert _plain(err, here) == f"error: {case.message}\n"
    assert "launching" not in out
    assert _tree(here / "run") == before


def _plain(text: str, folder: Path) -> str:
    """What changes from day to day replaced by a word."""
    text = text.replace(str(folder), "DIR")
    names = [one.name for one in bundled_recipes(ds_configs_dir() / "recipes")]
    text = text.replace(", ".join(names), "NAMES")
    return re.sub(r"(fingerprint|now) [0-9a-f]{12}", r"\1 HASH", text)


def _tree(folder: Path) -> dict[str, bytes]:
    """Files below a folder with their content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["weights cut off", "template that can not be masked"])
def test_nothing_else_is_on_stderr(here: Path, name: str) -> None:
    """In a process of its own, where no test runner catches the words of libraries."""
    case = next(case for case in CASES if case.name == name)
    case.arrange()
    done = subprocess.run(
        [sys.executable, "-m", "ds_train", *case.typed.split()], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert _plain(done.stderr, here) == f"error: {case.message}\n"


def test_the_folder_is_fine_without_a_fault(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the cases above would not show what their names say."""
    launched: list[Any] = []
    monkeypatch.setattr("ds_train.train.start.run_launcher", lambda *a, **k: launched.append(a))
    main(["train", "my.yaml"])
    main(["train", "my.yaml", "model.name_or_path=sharded"])
    assert len(launched) == 2


def test_quantisation_without_a_gpu(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ds_train.plan.rules._is_installed", lambda name: True)
    assert main(["train", "my.yaml", "model.quantization=nf4"]) == 2
    assert capfd.readouterr().err == (
        "error: model.quantization = nf4: needs a CUDA device, and this machine shows none; set "
        "model.quantization: none.\n"
    )


def test_all_faults_of_a_model_at_once(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    add_ids("sharded", "<x>")()
    cut("sharded/model-00001-of-00004.safetensors", 4)()
    cut("sharded/model-00003-of-00004.safetensors", 0)()
    capfd.readouterr()
    assert main(["train", "my.yaml", "model.name_or_path=sharded"]) == 2
    assert capfd.readouterr().err == (
        "error: 3 faults:\n"
        '  model.name_or_path = "sharded": its tokenizer has ids up to 259, but its embedding has '
        "259 rows; use the tokenizer that belongs to the model.\n"
        "  sharded/model-00001-of-00004.safetensors: is not a safetensors file (it has 4 bytes); "
        "copy it again.\n"
        "  sharded/model-00003-of-00004.safetensors: is not a safetensors file (it has 0 bytes); "
        "copy it again.\n"
    )


# What only the ranks can find: the model has to be built. Rank 0 prints it, the exit code is 2


def test_a_checkpoint_that_lacks_tensors(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tensors = load_file("model/model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:32].clone()
    save_file(tensors, "model/model.safetensors", metadata={"format": "pt"})
    config = ModelConfig(name_or_path="./model", dtype="fp32")
    with pytest.raises(InputError) as caught:
        load_model(config, load_architecture(config), seed=0)
    assert str(caught.value) == (
        'model.name_or_path = "./model": 1 of the model\'s parameters is not in its files '
        "(model.layers.1.self_attn.q_proj.weight) and 1 of the model's parameters is there in "
        "another shape (model.norm.weight); they would start from random values. Name a complete "
        "checkpoint, or set model.init: random to train from scratch."
    )
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": ["qproj"]},
            "adapter.target_modules = ['qproj']: no module has such a name; the model's linear "
            "layers are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj.",
        ),
        (
            {"method": "partial", "trainable": ["layer\\.1"]},
            "adapter.trainable = ['layer\\\\.1']: no parameter name matches; the model's are like "
            "model.embed_tokens.weight and lm_head.weight.",
        ),
    ],
)
def test_nothing_of_the_model_matches(settings: dict[str, Any], message: str) -> None:
    config = AdapterConfig.model_validate(settings)
    with pytest.raises(InputError) as caught:
        choose_trainable(tiny_model("llama"), config, base="base", seed=0)
    assert str(caught.value) == message


def test_a_tokenizer_without_pad_is_no_fault(here: Path) -> None:
    edit_json("model/tokenizer_config.json", lambda config: config.pop("pad_token"))()
    said: list[str] = []
    assert pad_token_id(open_tokenizer(ModelConfig(name_or_path="model")), said.append) == 2
    assert said == ["tokenizer: no pad_token; rows are filled with eos_token, which the mask hides"]


# The command line itself: argparse prints the usage line before the message


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("train", "ds-train train: error: the following arguments are required: recipe"),
        (
            "train my.yaml --dryrun",
            "ds-train: error: unknown argument --dryrun of ds-train train; see --help",
        ),
        (
            "data my.yaml --rows 0",
            'ds-train data: error: argument --rows: "0": must be a whole number of at least 1',
        ),
    ],
)
def test_bad_usage(here: Path, typed: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(typed.split())
    assert caught.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1] == message


def test_a_device_that_is_not_there(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "model", "hello", "--device", "cuda:99"]) == 2
    message = capfd.readouterr().err
    assert message.startswith("error: --device cuda:99: can't be used here (")
    assert message.endswith("); leave it out, or take cpu.\n")
