"""Averaged checkpoints equal a plain average of whole models, made with torch and PEFT alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_run import add_checkpoint, make_run, random_adapter
from peft import IA3Config, LoraConfig, PromptTuningConfig
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from ds_train.checkpoint.average import Average, average_layouts, parse_average
from ds_train.checkpoint.export import export_command
from ds_train.checkpoint.layout import Layout
from ds_train.checkpoint.shards import TensorSpec
from ds_train.errors import CheckpointError
from ds_train.model.tiny import save_tiny, tiny_model
from ds_train.paths import RunPaths

STEPS = (10, 20, 30)
CHECKPOINTS = {"every": 10, "keep": 6}


def _quiet(_: str) -> None:
    pass


def full_run(tmp_path: Path, base: Path, steps: tuple[int, ...] = STEPS) -> tuple[RunPaths, Any]:
    """A full fine-tuning run; its checkpoints are random models with seeds 10, 20, ..."""
    paths = make_run(tmp_path / "run", base, "full", checkpoint=CHECKPOINTS)
    models = {step: dict(tiny_model("llama", seed=step).named_parameters()) for step in steps}
    for step, state in models.items():
        add_checkpoint(paths, step, state)
    return paths, models


def adapter_checkpoints(paths: RunPaths, base: Path, config: Any) -> list[dict[str, Tensor]]:
    """A checkpoint per step with a random adapter each; the merged models' tensors by PEFT."""
    merged = []
    for step in STEPS:
        adapted: Any = random_adapter(base, copy.deepcopy(config), seed=step)
        adapted.save_pretrained(str(add_checkpoint(paths, step, {})), save_embedding_layers=False)
        merged.append(adapted.merge_and_unload().state_dict())
    return merged


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("last:2", {20: 0.5, 30: 0.5}),
        ("last:3", {10: 1 / 3, 20: 1 / 3, 30: 1 / 3}),
        ("ema:0.2", {10: 0.64, 20: 0.16, 30: 0.2}),
        ("ema:0.2:2", {20: 0.8, 30: 0.2}),
    ],
)
def test_full_fine_tuning_equals_a_plain_average(
    tmp_path: Path, text: str, shares: dict[int, float]
) -> None:
    base = save_tiny(tmp_path / "base", shard_size="60KB")
    paths, models = full_run(tmp_path, base)
    out = export_command(paths.root, average=text, say=_quiet)
    assert out == paths.root / "averaged"
    exported = AutoModelForCausalLM.from_pretrained(str(out), dtype=torch.float32)
    for name, parameter in exported.named_parameters():
        expected = sum(share * models[step][name].double() for step, share in shares.items())
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-6, atol=1e-7)


def test_partial_fine_tuning_leaves_the_rest_as_it_was_to_the_bit(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", dtype=torch.bfloat16)
    paths = make_run(tmp_path / "run", base, "partial", checkpoint=CHECKPOINTS)
    norms = [torch.full((64,), 1 + 2**-8 * k) for k in (1, 1, 2)]
    for step, norm in zip(STEPS, norms, strict=True):
        add_checkpoint(paths, step, {"model.norm.weight": norm})
    tensors = load_file(
        export_command(paths.root, average="last:3", say=_quiet) / "model.safetensors"
    )
    before = load_file(base / "model.safetensors")
    changed = {key for key, tensor in tensors.items() if not torch.equal(tensor, before[key])}
    assert changed == {"model.norm.weight"}
    # averaged in fp32 and rounded to bf16 once, which is not the average of rounded weights
    expected = torch.stack(norms).mean(0).bfloat16()
    rounded_first = torch.stack([norm.bfloat16() for norm in norms]).float().mean(0).bfloat16()
    assert torch.equal(tensors["model.norm.weight"], expected)
    assert not torch.equal(expected, rounded_first)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"),
        IA3Config(task_type="CAUSAL_LM"),
    ],
)
def test_an_adapter_is_averaged_as_merged_weights(tmp_path: Path, config: Any) -> None:
    base = save_tiny(tmp_path / "base")
    method = "ia3" if isinstance(config, IA3Config) else "lora"
    paths = make_run(tmp_path / "run", base, method, checkpoint=CHECKPOINTS)
    merged = adapter_checkpoints(paths, base, config)
    out = export_command(paths.root, merge=True, average="ema:0.3", say=_quiet)
    for key, tensor in load_file(out / "model.safetensors").items():
        expected = merged[0][key].double()
        for one in merged[1:]:
            expected = 0.3 * one[key].double() + 0.7 * expected
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_mean_of_products_is_not_the_product_of_means(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    paths = make_run(tmp_path / "run", base, "lora", checkpoint=CHECKPOINTS)
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapter_checkpoints(paths, base, config)
    files = [paths.checkpoint(step) / "adapter_model.safetensors" for step in STEPS]
    saved = [load_file(file) for file in files]
    adapted: Any = random_adapter(base, config)
    means = {key: torch.stack([one[key] for one in saved]).mean(0) for key in saved[0]}
    _, surplus = adapted.load_state_dict(
        {key.replace(".weight", ".default.weight"): value for key, value in means.items()},
        strict=False,
    )
    assert not surplus
    product_of_means = adapted.merge_and_unload().state_dict()
    out = export_command(paths.root, merge=True, average="last:3", say=_quiet)
    tensors = load_file(out / "model.safetensors")
    key = "model.layers.0.self_attn.q_proj.weight"
    assert (tensors[key] - product_of_means[key]).abs().max() > 1e-3


def test_only_the_last_ones_count_not_the_best_that_is_kept_beside_them(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    paths = make_run(tmp_path / "run", base, "full", checkpoint={"every": 10, "keep": 2})
    for step in STEPS:  # step 10 stands for the best, which outlived the pruning
        add_checkpoint(paths, step, dict(tiny_model("llama", seed=step).named_parameters()))
    said: list[str] = []
    export_command(paths.root, average="ema:0.25", output=tmp_path / "out", say=said.append)
    assert said[-1].startswith(
        "export: model of the average of step-00000020 (0.75), step-00000030 (0.25) in "
    )
    with pytest.raises(CheckpointError, match="keeps 2 of its last checkpoints"):
        export_command(paths.root, average="last:3", say=_quiet)


def test_weights_sum_to_one_and_follow_the_recurrence() -> None:
    for average, count in ((Average("", None, 0.2), 6), (Average("", 6), 6)):
        weights = average.weights(count)
        assert sum(weights) == pytest.approx(1, abs=1e-15)
        assert len(weights) == count
    value = 1.0  # of models 1, 2, 3, 4 that hold these numbers
    for newer in (2.0, 3.0, 4.0):
        value = 0.2 * newer + 0.8 * value
    weights = Average("", None, 0.2).weights(4)
    assert sum(w * n for w, n in zip(weights, (1, 2, 3, 4), strict=True)) == pytest.approx(value)


def test_what_is_equal_everywhere_or_no_number_with_a_point_stays() -> None:
    specs = {"f": [TensorSpec("x", torch.float32, (3,)), TensorSpec("n", torch.int64, (1,))]}
    tensors = {"x": torch.tensor([0.1, float("inf"), 1e30]), "n": torch.tensor([7])}
    layouts = [Layout(specs, lambda key: tensors[key].clone(), False) for _ in range(3)]
    mean = average_layouts(layouts, [0.1, 0.2, 0.7])
    assert torch.equal(mean.make("x"), tensors["x"]) and torch.equal(mean.make("n"), tensors["n"])
    other = Layout(specs, layouts[0].make, True)
    with pytest.raises(CheckpointError, match="do not have the same tensors"):
        average_layouts([layouts[0], other], [0.5, 0.5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mean:6", "write last:6"),
        ("last", "write last:6"),
        ("last:x", "write last:6"),
        ("last:-2", "write last:6"),
        ("last:2:3", "write last:6"),
        ("ema", "write last:6"),
        ("ema:x", "write last:6"),
        ("ema:0.2:x", "write last:6"),
        ("last:1", "it takes at least 2 checkpoints to average."),
        ("ema:0.2:0", "it takes at least 2 checkpoints to average."),
        ("ema:0", "must lie between 0 and 1"),
        ("ema:1", "must lie between 0 and 1"),
        ("ema:nan", "must lie between 0 and 1"),
    ],
)
def test_what_is_no_average_is_refused(text: str, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_average(text)
    assert str(caught.value).startswith(f"--average {text}: ") and message in str(caught.value)


def test_messages_about_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = save_tiny(Path("base"))
    full_run(Path(), base, (10, 20))

    def message(run: str, **options: Any) -> str:
        with pytest.raises(CheckpointError) as caught:
            export_command(run, say=_quiet, **options)
        return str(caught.value)

    assert message("run", average="last:6") == (
        '--average last:6: "run" keeps 2 of its last checkpoints (step-00000010, step-00000020), '
        "and 6 are wanted. checkpoint.keep = 6 and checkpoint.every say how many there are: ask "
        "for fewer, or train with others."
    )
    assert message("run", average="last:2", checkpoint="step-10") == (
        "--average last:2 with --checkpoint step-10: the last checkpoints are averaged; leave "
        "--checkpoint out."
    )
    paths = make_run(Path("lora"), base, "lora", checkpoint=CHECKPOINTS)
    adapter_checkpoints(
        paths, base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    assert message("lora", average="last:2") == (
        "--average last:2: adapter.method = lora, and the mean of merged weights is no adapter any "
        "more (a mean of products is not the product of means); add --merge."
    )
    prompt = make_run(Path("prompt"), base, "prompt_tuning", checkpoint=CHECKPOINTS)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    for step in STEPS:
        random_adapter(base, config).save_pretrained(str(add_checkpoint(prompt, step, {})))
    assert "changes no weight" in message("prompt", average="last:2", merge=True)
    assert not list(Path().glob("*/*averaged*"))
