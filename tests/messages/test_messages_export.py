"""Messages of export, evaluate and generate about what the user gave, word for word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_run import adapter_run, add_checkpoint, make_run, random_adapter
from peft import LoraConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file

from ds_train.checkpoint.export import export_command
from ds_train.errors import InputError
from ds_train.evaluate.generate import generate_command
from ds_train.evaluate.loss import evaluate_command
from ds_train.model.tiny import save_tiny


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with a base model, so that messages hold short names."""
    monkeypatch.chdir(tmp_path)
    save_tiny(Path("base"))
    return tmp_path


def _message(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, say=lambda _: None, **kwargs)
    return str(caught.value)


def _lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def test_not_a_run(here: Path) -> None:
    assert _message(export_command, "base") == (
        '"base" is not a run folder: it has no recipe.yaml. Give the output_dir of a run.'
    )


def test_no_checkpoint_yet(here: Path) -> None:
    make_run(Path("run"), Path("base"))
    assert _message(export_command, "run") == (
        '"run" has no complete checkpoint yet. Start `ds-train train` with its recipe; '
        "checkpoint.every says how often one is made."
    )


def test_no_such_checkpoint(here: Path) -> None:
    paths = make_run(Path("run"), Path("base"), "full")
    add_checkpoint(paths, 50, {"model.norm.weight": torch.ones(64)})
    assert _message(evaluate_command, "run", checkpoint="step-60") == (
        '--checkpoint step-60: "run" has no such complete checkpoint; it has latest, step-00000050.'
    )
    assert _message(generate_command, "run", "x", checkpoint="best") == (
        '"run" has no best checkpoint: no validation loss was measured, or none was lower than at '
        "the start. Use --checkpoint latest, or look at metrics.jsonl."
    )


def test_a_damaged_state_file(here: Path) -> None:
    paths = make_run(Path("run"), Path("base"), "full")
    folder = add_checkpoint(paths, 50, {"model.norm.weight": torch.ones(64)})
    file = folder / "state" / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    message = _message(export_command, "run")
    assert message.startswith(f'"{file}" is missing or damaged (')
    assert message.endswith(
        "). Remove the checkpoint folder step-00000050 to go on from the one before it."
    )


def test_output_is_occupied(here: Path) -> None:
    adapter_run(Path("run"), Path("base"), _lora())
    assert _message(export_command, "run", merge=True, output="base") == (
        "--output base: already there and not empty, and nothing is overwritten. Remove it or "
        "choose another folder."
    )


def test_output_can_not_be_written(here: Path) -> None:
    adapter_run(Path("run"), Path("base"), _lora())
    Path("file").write_text("")
    assert _message(export_command, "run", merge=True, output="file/out") == (
        "--output file/out: Not a directory. Make room there, or choose another folder with "
        "--output."
    )


def test_dtype_without_merge(here: Path) -> None:
    adapter_run(Path("run"), Path("base"), _lora())
    assert _message(export_command, "run", dtype="bf16") == (
        "--dtype bf16: an adapter keeps the precision it was trained in; --dtype goes with --merge."
    )


def test_merge_of_virtual_tokens(here: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    paths, _ = adapter_run(Path("run"), Path("base"), config)
    assert _message(export_command, "run", merge=True) == (
        f'--merge: the adapter in "{paths.checkpoint(50)}" is PROMPT_TUNING: it puts learned '
        "vectors before the input and changes no weight, so there is nothing to merge into. "
        "Export without --merge and load it with PEFT over the base model."
    )


def test_adapter_of_another_base(here: Path) -> None:
    paths, _ = adapter_run(Path("run"), Path("base"), _lora())
    save_tiny(Path("deeper"), num_hidden_layers=3)
    folder = str(paths.checkpoint(50))
    random_adapter(Path("deeper"), _lora()).save_pretrained(folder)
    assert _message(export_command, "run", merge=True) == (
        f'the adapter in "{folder}" does not fit the base model: 0 of its tensors are missing, 4 '
        "match no module, 0 have another shape (base_model.model.model.layers.2.self_attn.q_proj."
        "lora_A.weight, base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight, "
        "base_model.model.model.layers.2.self_attn.v_proj.lora_A.weight). Was it trained on "
        "another base?"
    )


def test_a_tensor_is_missing_in_the_base(here: Path) -> None:
    adapter_run(Path("run"), Path("base"), _lora())
    tensors = load_file("base/model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, "base/model.safetensors", metadata={"format": "pt"})
    assert _message(export_command, "run", merge=True) == (
        "1 trained tensors have no counterpart in the base model's files (model.layers.1.self_attn."
        "q_proj.weight). Is model.name_or_path still the model of the run?"
    )


def test_a_model_without_data(here: Path) -> None:
    assert _message(evaluate_command, "base") == (
        "base: not a run, so it brings no data along. Give --recipe FILE.yaml, whose data section "
        "is evaluated on."
    )


def test_nothing_to_load(here: Path) -> None:
    Path("empty").mkdir()
    assert _message(generate_command, "empty", "x") == (
        '"empty": neither a run (recipe.yaml), nor an adapter (adapter_config.json), nor a model '
        "(config.json)."
    )
    assert _message(evaluate_command, "base", base=True) == (
        '--base: "base" is a model, not a run or an adapter over one.'
    )


def test_prompts(here: Path) -> None:
    assert _message(generate_command, "base", "x" * 300) == (
        "the prompt has 301 tokens, and the model reads at most 256 positions. Shorten the prompt."
    )
    assert _message(generate_command, "base", "x", chat=True) == (
        "--chat: the tokenizer of base has no chat template, and no recipe names one. Leave --chat "
        "out, or train with data.chat_template."
    )
    assert _message(generate_command, "base", "x", temperature=-1.0) == (
        "--temperature -1.0: must be 0 (greedy) or more"
    )
