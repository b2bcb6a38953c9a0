"""Evaluation gives the numbers of a plain loop, the same for a run, its adapter and its merge."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_run import adapter_run, add_checkpoint, make_run, random_adapter
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file
from small_store import make_store
from transformers import AutoModelForCausalLM

from ds_train.checkpoint.export import export_command
from ds_train.data.store import TokenStore
from ds_train.errors import ConfigError, DataError, ModelError
from ds_train.evaluate.loss import evaluate_command
from ds_train.evaluate.samples import score_samples, summarise
from ds_train.model.head import LanguageModel
from ds_train.model.tiny import save_tiny, tiny_model

NUMBERS = ("num_samples", "supervised_tokens", "loss", "token_accuracy", "exact_match")


def _quiet(_: str) -> None:
    pass


def _random_store(count: int = 11) -> TokenStore:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 30, (count,), generator=generator).tolist()
    ids = [torch.randint(3, 259, (n,), generator=generator).tolist() for n in lengths]
    masks = [[0, *torch.randint(0, 2, (n - 1,), generator=generator).tolist()] for n in lengths]
    for mask in masks:
        mask[-1] = 1
    return make_store(ids, masks)


def _model(kind: str, base: Path) -> Any:
    if kind in ("llama", "gpt2", "gemma2"):
        return tiny_model(kind)
    config = {
        "prompt_tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prefix_tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "ia3": IA3Config(task_type="CAUSAL_LM"),
    }[kind]
    return random_adapter(base, config)


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "gemma2", "prompt_tuning", "prefix_tuning", "ia3"]
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_are_those_of_a_plain_loop(kind: str, batch_size: int, tiny_base: Path) -> None:
    model, store = _model(kind, tiny_base), _random_store()
    wrapped = LanguageModel(copy.deepcopy(model))
    scores = score_samples(
        wrapped,
        store,
        batch_size=batch_size,
        max_length=64,
        pad_token_id=0,
    )
    for sample in range(store.num_samples):
        ids = torch.from_numpy(store.tokens(sample).astype("int64"))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, -len(ids) :]
        losses = torch.log_softmax(logits[:-1], -1).gather(1, ids[1:, None])[:, 0].neg()
        learned = torch.from_numpy(store.mask(sample).copy())[1:]
        assert scores.loss_sum[sample] == pytest.approx(losses[learned].sum().item(), rel=1e-5)
        right = logits[:-1].argmax(-1) == ids[1:]
        assert scores.num_correct[sample] == right[learned].sum()


def test_exact_match_counts_answers_that_greedy_decoding_gives(tiny_base: Path) -> None:
    model = tiny_model("llama")
    prompts = [[1, 40, 50], [1, 60], [1, 70, 80, 90], [1, 100]]
    answers = []
    for prompt in prompts:
        out = model.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False)
        answers.append(out[0, len(prompt) :].tolist())
    answers[2][3] = (answers[2][3] + 1) % 259  # one wrong token spoils one answer
    ids = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    masks = [[0] * len(prompts[i]) + [1] * len(answers[i]) for i in range(4)]
    store = make_store(ids, masks)
    wrapped = LanguageModel(model)
    scores = score_samples(wrapped, store, batch_size=4, max_length=64, pad_token_id=0)
    numbers = summarise(store, scores)
    assert numbers["exact_match"] == 0.75 and numbers["token_accuracy"] < 1
    assert numbers["num_samples"] == 4 and numbers["supervised_tokens"] == sum(map(len, answers))


def test_run_adapter_and_merged_model_agree(
    tmp_path: Path, tiny_base: Path, sums: dict[str, Any]
) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    paths, _ = adapter_run(tmp_path / "run", tiny_base, config, data=sums)
    adapter = export_command(paths.root, say=_quiet)
    merged = export_command(paths.root, merge=True, say=_quiet)
    recipe = str(paths.recipe)
    of_run = evaluate_command(str(paths.root), output=tmp_path / "numbers.json", say=_quiet)
    of_adapter = evaluate_command(str(adapter), recipe=recipe, say=_quiet)
    of_merged = evaluate_command(str(merged), recipe=recipe, say=_quiet)
    of_base = evaluate_command(str(paths.root), base=True, say=_quiet)
    assert [of_adapter[key] for key in NUMBERS] == [of_run[key] for key in NUMBERS]
    assert of_merged["loss"] == pytest.approx(of_run["loss"], rel=1e-5)
    assert abs(of_base["loss"] - of_run["loss"]) > 1e-3
    assert of_run["perplexity"] == pytest.approx(math.exp(of_run["loss"]))
    assert json.loads((tmp_path / "numbers.json").read_text()) == of_run
    parts = of_run["sources"]
    assert parts.keys() == {"plus", "minus"}
    assert sum(one["num_samples"] for one in parts.values()) == of_run["num_samples"]
    by_hand = sum(one["loss"] * one["supervised_tokens"] for one in parts.values())
    assert of_run["loss"] == pytest.approx(by_hand / of_run["supervised_tokens"])


def test_full_fine_tuning_is_read_from_the_state_files(
    tmp_path: Path, tiny_base: Path, sums: dict[str, Any]
) -> None:
    trained = tiny_model("llama", seed=5)
    paths = make_run(tmp_path / "run", tiny_base, "full", data=sums)
    add_checkpoint(paths, 3, dict(trained.named_parameters()))
    trained.save_pretrained(str(tmp_path / "plain"))
    (tmp_path / "plain" / "tokenizer.json").write_bytes((tiny_base / "tokenizer.json").read_bytes())
    for name in ("tokenizer_config.json",):
        (tmp_path / "plain" / name).write_bytes((tiny_base / name).read_bytes())
    of_run = evaluate_command(str(paths.root), split="train", say=_quiet)
    plain = evaluate_command(
        str(tmp_path / "plain"), recipe=paths.recipe, split="train", say=_quiet
    )
    assert [of_run[key] for key in NUMBERS] == [plain[key] for key in NUMBERS]


def test_a_run_from_random_weights(tmp_path: Path, sums: dict[str, Any]) -> None:
    base = save_tiny(tmp_path / "base")
    (base / "model.safetensors").unlink()
    paths = make_run(tmp_path / "run", base, "full", data=sums, model={"init": "random"})
    add_checkpoint(paths, 3, dict(tiny_model("llama", seed=5).named_parameters()))
    exported = export_command(paths.root, say=_quiet)
    of_run = evaluate_command(str(paths.root), say=_quiet)
    of_export = evaluate_command(
        str(exported), recipe=paths.recipe, overrides=["model.init=pretrained"], say=_quiet
    )
    assert of_export["loss"] == of_run["loss"]


def test_the_table(tmp_path: Path, tiny_base: Path, sums: dict[str, Any]) -> None:
    paths = make_run(tmp_path / "run", tiny_base, "full", data=sums)
    said: list[str] = []
    result = evaluate_command(str(paths.root), base=True, max_samples=5, say=said.append)
    head, *rows = said[-1].splitlines()[1:]
    assert head.split() == [
        *("samples", "supervised", "loss", "perplexity", "bits/byte", "accuracy", "exact", "match")
    ]
    assert rows[-1].split()[:2] == ["all", "5"] or len(rows) == 1
    assert result["num_samples"] == 5


def test_bits_per_byte(tmp_path: Path, tiny_base: Path) -> None:
    """The tiny tokenizer's tokens are bytes, and the end of a document has none."""
    text = tmp_path / "text.jsonl"
    texts = ["plain", "Grüße, 日本 🙂"]
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    data = {
        "train": [{"path": str(text)}],
        "validation": {"sources": [{"path": str(text)}]},
        "max_length": 64,
        "cache_dir": str(tmp_path / "cache"),
    }
    paths = make_run(tmp_path / "run", tiny_base, "full", data=data)
    result = evaluate_command(str(paths.root), base=True, say=_quiet)
    num_bytes = sum(len(one.encode()) for one in texts)
    assert result["supervised_tokens"] == num_bytes + len(texts)
    bits = result["loss"] * result["supervised_tokens"] / math.log(2)
    assert result["bits_per_byte"] == pytest.approx(bits / num_bytes)


def test_messages(tmp_path: Path, tiny_base: Path, sums: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"not a run, so it brings no data along. Give --recipe"):
        evaluate_command(str(tiny_base), say=_quiet)
    with pytest.raises(ModelError, match=r"neither a run .*, nor an adapter .*, nor a model"):
        evaluate_command(str(tmp_path), say=_quiet)
    with pytest.raises(ModelError, match="is a model, not a run"):
        evaluate_command(str(tiny_base), base=True, say=_quiet)
    data = {**sums, "validation": {}}
    paths = make_run(tmp_path / "run", tiny_base, "full", data=data)
    with pytest.raises(DataError, match=r"holds nothing out\. Evaluate with --split train"):
        evaluate_command(str(paths.root), base=True, say=_quiet)


def test_a_recipe_of_its_own_with_overrides(
    tmp_path: Path, tiny_base: Path, sums: dict[str, Any]
) -> None:
    paths = make_run(tmp_path / "run", tiny_base, "full", data=sums)
    recipe = yaml.safe_load(paths.recipe.read_text())
    recipe["data"]["train"] = recipe["data"]["train"][:1]
    recipe["model"]["name_or_path"] = "of no interest here"
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(recipe))
    result = evaluate_command(
        str(tiny_base),
        recipe=tmp_path / "other.yaml",
        overrides=["data.train.0.max_samples=10", "data.validation.fraction=0"],
        split="train",
        say=_quiet,
    )
    assert result["num_samples"] == 10 and result["sources"].keys() == {"plus"}


def test_weights_stay_in_the_dtype_of_the_files(tmp_path: Path, sums: dict[str, Any]) -> None:
    from ds_train.evaluate.model import load_for_inference

    base = save_tiny(tmp_path / "base", dtype=torch.bfloat16)
    model, _ = load_for_inference(str(base), device="cpu", say=_quiet)
    plain = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    stored = load_file(base / "model.safetensors")["model.norm.weight"]
    assert torch.equal(model.model.norm.weight, stored)
    assert torch.equal(model.model.norm.weight, plain.model.norm.weight)
    wide, _ = load_for_inference(str(base), dtype="fp32", device="cpu", say=_quiet)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
