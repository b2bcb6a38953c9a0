"""Exported from files alone, a model gives the logits that base and adapter gave together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_run import adapter_run, add_checkpoint, make_run, random_adapter
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ds_train.checkpoint.export import export_command
from ds_train.errors import CheckpointError
from ds_train.model.tiny import save_tiny, tiny_model

IDS = torch.arange(3, 43).reshape(2, 20) * 5 % 256 + 3


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def _load(folder: Path) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def _quiet(_: str) -> None:
    pass


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        | settings
    )


def ia3(**settings: Any) -> IA3Config:
    return IA3Config(task_type="CAUSAL_LM", **settings)


CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "lora": ("llama", {}, lora),
    "rslora": ("llama", {}, lambda: lora(use_rslora=True)),
    "dora": ("llama", {}, lambda: lora(use_dora=True)),
    "patterns": (
        "mistral",
        {},
        lambda: lora(rank_pattern={"q_proj": 2}, alpha_pattern={"layers.1.mlp.up_proj": 32}),
    ),
    "tied, lora": ("qwen2", {"tie_word_embeddings": True}, lora),
    "biases, lora_only": ("qwen2", {}, lambda: lora(bias="lora_only")),
    "biases, all": ("qwen2", {}, lambda: lora(bias="all")),
    "gemma2": ("gemma2", {}, lora),
    "conv1d": ("gpt2", {}, lora),
    "conv1d, dora": ("gpt2", {}, lambda: lora(use_dora=True, fan_in_fan_out=True)),
    "embedding": ("llama", {}, lambda: lora(target_modules=["embed_tokens", "q_proj"])),
    "ia3": ("llama", {}, ia3),
    "ia3, biases": ("qwen2", {}, ia3),
    "ia3, conv1d": ("gpt2", {}, ia3),
    "ia3, chosen": (
        "llama",
        {},
        lambda: ia3(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "saved head": ("llama", {}, lambda: lora(modules_to_save=["lm_head"])),
    "saved norm": ("llama", {}, lambda: lora(modules_to_save=["norm", "embed_tokens"])),
    "tied, saved head": (
        "llama",
        {"tie_word_embeddings": True},
        lambda: lora(modules_to_save=["lm_head"]),
    ),
    "tied, saved embedding": (
        "gpt2",
        {"tie_word_embeddings": True},
        lambda: lora(modules_to_save=["wte"]),
    ),
    "tied, adapted embedding": (
        "llama",
        {"tie_word_embeddings": True},
        lambda: lora(target_modules=["embed_tokens", "v_proj"]),
    ),
    "tied, both saved apart": (
        "llama",
        {"tie_word_embeddings": True},
        lambda: lora(modules_to_save=["lm_head", "embed_tokens"]),
    ),
    "tied, both saved as one": (
        "llama",
        {"tie_word_embeddings": True},
        lambda: lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_merged_model_equals_base_and_adapter(tmp_path: Path, case: str) -> None:
    model_type, settings, config = CASES[case]
    base = save_tiny(tmp_path / "base", model_type, shard_size="60KB", **settings)
    paths, adapted = adapter_run(tmp_path / "run", base, config())
    merged = export_command(paths.root, merge=True, say=_quiet)
    got, expected, before = _logits(_load(merged)), _logits(adapted), _logits(_load(base))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (expected - before).abs().max() > 0.01  # the adapter does something
    assert len(list(merged.glob("*.safetensors"))) == len(list(base.glob("*.safetensors"))) > 1


def test_tied_weights_that_part_are_said_and_written_twice(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", tie_word_embeddings=True)
    config = lora(modules_to_save=["lm_head"])
    paths, _ = adapter_run(tmp_path / "run", base, config)
    said: list[str] = []
    merged = export_command(paths.root, merge=True, output=tmp_path / "out", say=said.append)
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is False
    tensors = load_file(merged / "model.safetensors")
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert any("parted the tied" in line for line in said)


def test_tied_weights_that_stay_tied_are_written_once(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", tie_word_embeddings=True)
    paths, _ = adapter_run(tmp_path / "run", base, lora())
    merged = export_command(paths.root, merge=True, say=_quiet)
    assert "lm_head.weight" not in load_file(merged / "model.safetensors")
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is True


def test_files_that_lack_the_prefix_of_the_backbone(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "gpt2")  # the hub's gpt2 has `h.0...`, not `transformer.h`
    tensors = load_file(base / "model.safetensors")
    bare = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    paths, adapted = adapter_run(tmp_path / "run", base, lora(fan_in_fan_out=True))
    merged = export_command(paths.root, merge=True, say=_quiet)
    torch.testing.assert_close(_logits(_load(merged)), _logits(adapted), rtol=1e-5, atol=1e-5)
    assert load_file(merged / "model.safetensors").keys() == bare.keys()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["full", "partial"])
def test_full_and_partial_take_the_trained_parameters(
    tmp_path: Path, method: str, tied: bool
) -> None:
    base = save_tiny(tmp_path / "base", tie_word_embeddings=tied, shard_size="60KB")
    trained = tiny_model("llama", seed=5, tie_word_embeddings=tied)
    state = dict(trained.named_parameters())
    if method == "partial":
        state = {name: tensor for name, tensor in state.items() if "mlp" in name}
    paths = make_run(tmp_path / "run", base, method)
    add_checkpoint(paths, 7, state)
    exported = _load(export_command(paths.root, say=_quiet))
    before = dict(_load(base).named_parameters())
    for name, parameter in exported.named_parameters():
        assert torch.equal(parameter, state.get(name, before[name])), name
    if method == "full":
        assert torch.equal(_logits(exported), _logits(trained))


def test_a_run_from_random_weights_needs_no_base_weights(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    (base / "model.safetensors").unlink()
    trained = tiny_model("llama", seed=5, num_hidden_layers=3)
    sections = {"init": "random", "config_overrides": {"num_hidden_layers": 3}}
    paths = make_run(tmp_path / "run", base, "full", model=sections)
    add_checkpoint(paths, 7, dict(trained.named_parameters()))
    exported = export_command(paths.root, say=_quiet)
    assert torch.equal(_logits(_load(exported)), _logits(trained))
    assert AutoTokenizer.from_pretrained(str(exported)).decode([3 + 40]) != ""


@pytest.mark.parametrize(
    ("base_dtype", "asked", "expected"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float32, "bf16", torch.bfloat16),
        (torch.bfloat16, "fp32", torch.float32),
    ],
)
def test_dtype_is_the_base_s_or_the_one_asked_for(
    tmp_path: Path, base_dtype: torch.dtype, asked: str | None, expected: torch.dtype
) -> None:
    base = save_tiny(tmp_path / "base", dtype=base_dtype)
    paths, adapted = adapter_run(tmp_path / "run", base, lora())
    merged = export_command(paths.root, merge=True, dtype=asked, say=_quiet)
    tensors = load_file(merged / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {expected}
    assert json.loads((merged / "config.json").read_text())["dtype"] == str(expected)[6:]
    # Merged in fp32 and rounded once: exactly the rounding of what PEFT makes of an fp32 base.
    whole = adapted.merge_and_unload().state_dict()
    for key, tensor in tensors.items():
        assert torch.equal(tensor, whole[key].to(expected)), key


def test_an_adapter_folder_for_plain_peft(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    paths, adapted = adapter_run(tmp_path / "run", base, lora())
    folder = export_command(paths.root, output=tmp_path / "adapter", say=_quiet)
    name = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert name == str(base.resolve())
    model = PeftModel.from_pretrained(_load(Path(name)), str(folder))
    assert torch.equal(_logits(model), _logits(adapted))
    text = "what, exactly?"
    exported, original = (AutoTokenizer.from_pretrained(str(one)) for one in (folder, base))
    assert exported(text).input_ids == original(text).input_ids


def test_the_recipe_s_chat_template_goes_along(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    data = {"chat_template": "{% for m in messages %}{{ m.role }}>{{ m.content }}\n{% endfor %}"}
    paths, _ = adapter_run(tmp_path / "run", base, lora(), data=data)
    tokenizer = AutoTokenizer.from_pretrained(str(export_command(paths.root, say=_quiet)))
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "user>Hi\n"


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
)
def test_virtual_tokens_can_be_exported_but_not_merged(tmp_path: Path, config: Any) -> None:
    base = save_tiny(tmp_path / "base")
    paths, adapted = adapter_run(tmp_path / "run", base, config)
    with pytest.raises(CheckpointError, match="changes no weight, so there is nothing to merge"):
        export_command(paths.root, merge=True, say=_quiet)
    assert not (paths.root / "merged").exists()
    folder = export_command(paths.root, say=_quiet)
    model = PeftModel.from_pretrained(_load(base), str(folder))
    assert torch.equal(_logits(model), _logits(adapted))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    deeper = save_tiny(tmp_path / "deeper", num_hidden_layers=3)
    paths, _ = adapter_run(tmp_path / "run", base, lora(target_modules=["q_proj", "v_proj"]))
    random_adapter(deeper, lora(target_modules=["q_proj", "v_proj"])).save_pretrained(
        str(paths.checkpoint(50))
    )
    with pytest.raises(CheckpointError, match="0 of its tensors are missing, 4 match no module"):
        export_command(paths.root, merge=True, say=_quiet)
    assert not list(paths.root.glob(".merged*"))


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    paths = make_run(tmp_path / "run", base, "full")
    add_checkpoint(paths, 7, {"model.norm.weight": torch.ones(64), "extra.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"20 of its parameters are missing, 1 are not"):
        export_command(paths.root, say=_quiet)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gpt_neox"])
def test_full_fine_tuning_where_transformers_renames_or_joins_tensors(
    tmp_path: Path, model_type: str
) -> None:
    sizes = {"num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 32}
    sizes["num_experts_per_tok"] = 2
    settings = {} if model_type == "gpt_neox" else sizes
    base = save_tiny(tmp_path / "base", model_type, dtype=torch.bfloat16, **settings)
    trained = tiny_model(model_type, seed=5, **settings)
    paths = make_run(tmp_path / "run", base, "full")
    add_checkpoint(paths, 7, dict(trained.named_parameters()))
    exported = export_command(paths.root, dtype="fp32", say=_quiet)
    assert torch.equal(_logits(_load(exported)), _logits(trained))


def test_lora_on_the_attention_of_a_mixture_of_experts(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "mixtral", num_local_experts=4)
    config = lora(target_modules=["q_proj", "v_proj"])
    paths, adapted = adapter_run(tmp_path / "run", base, config)
    merged = export_command(paths.root, merge=True, say=_quiet)
    torch.testing.assert_close(_logits(_load(merged)), _logits(adapted), rtol=1e-5, atol=1e-5)


def test_quantised_weights_are_no_base_to_merge_into(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    paths, _ = adapter_run(tmp_path / "run", base, lora())
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"quantised weights \(bitsandbytes\), into which"):
        export_command(paths.root, merge=True, say=_quiet)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    paths, _ = adapter_run(tmp_path / "run", base, lora())
    target = tmp_path / "out"
    target.mkdir()
    export_command(paths.root, output=target, say=_quiet)  # an empty folder may be there
    with pytest.raises(CheckpointError, match="already there and not empty"):
        export_command(paths.root, output=target, say=_quiet)


def test_a_full_disk_is_found_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny(tmp_path / "base")
    paths, _ = adapter_run(tmp_path / "run", base, lora())
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(CheckpointError, match=r"takes .* KiB, the disk has 1000 B free"):
        export_command(paths.root, merge=True, say=_quiet)


def test_pytorch_bin_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    paths, _ = adapter_run(tmp_path / "run", base, lora())
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(Exception, match="convert the weights to safetensors"):
        export_command(paths.root, merge=True, say=_quiet)


def test_checkpoints_are_found_by_name(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    paths = make_run(tmp_path / "run", base, "full")
    with pytest.raises(CheckpointError, match="no complete checkpoint yet"):
        export_command(paths.root)
    for step in (5, 10):
        add_checkpoint(paths, step, {"model.norm.weight": torch.full((64,), float(step))})
    norms = {}
    for which in ("latest", "step-5", "step-00000010"):
        out = export_command(paths.root, checkpoint=which, output=tmp_path / which, say=_quiet)
        norms[which] = load_file(out / "model.safetensors")["model.norm.weight"][0].item()
    assert norms == {"latest": 10, "step-5": 5, "step-00000010": 10}
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        export_command(paths.root, checkpoint="best")
    with pytest.raises(CheckpointError, match="it has latest, step-00000005, step-00000010"):
        export_command(paths.root, checkpoint="step-7")
    with pytest.raises(CheckpointError, match="is not a run folder"):
        export_command(base)
