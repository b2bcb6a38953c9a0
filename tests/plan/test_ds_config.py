"""The resolved DeepSpeed config: golden dicts, auto values, contradictions, presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_train.errors import ConfigError
from ds_train.plan.batch import batch_arithmetic
from ds_train.plan.ds_config import (
    deep_merge,
    resolve_ds_config,
    use_coalesced_reduction,
    zero_settings,
)
from ds_train.plan.ds_lint import lint_ds_config
from ds_train.plan.presets import ds_configs_dir, preset_names, read_preset

GOLDEN = Path(__file__).parent / "golden"


def resolve(config, world: int = 2) -> dict[str, Any]:
    return resolve_ds_config(config, batch_arithmetic(config, world))


def faults_of(config, world: int = 2) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(config, world)
    return caught.value.faults


def leaves(block: dict[str, Any]) -> list[Any]:
    return [
        leaf
        for value in block.values()
        for leaf in (leaves(value) if isinstance(value, dict) else [value])
    ]


@pytest.mark.parametrize("name", ["zero2_lora_bf16", "zero3_lora_bf16", "zero3_full_fp32"])
def test_golden(make, name: str) -> None:
    """The whole dict. When it changes on purpose, read the difference, then replace the file."""
    preset, method, dtype = name.split("_")
    config = make(
        model={"dtype": dtype},
        adapter={"method": method},
        engine={"preset": preset},
        train={"global_batch_size": 32, "per_device_train_batch_size": 4, "max_grad_norm": 0.5},
    )
    resolved = resolve(config)
    assert resolved == json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_every_preset_resolves_to_known_explicit_values(make, preset, method, dtype) -> None:
    config = make(model={"dtype": dtype}, adapter={"method": method}, engine={"preset": preset})
    resolved = resolve(config)
    assert lint_ds_config(read_preset(preset), preset) == []
    own = {k: v for k, v in resolved.items() if k != "managed_gradient_accumulation"}
    assert lint_ds_config(own, "resolved") == []
    assert "auto" not in leaves(resolved)
    assert None not in leaves(resolved)
    # at stage 0 in fp32 DeepSpeed knows no norm, so our engine clips
    clips = not (preset == "zero0" and dtype == "fp32")
    assert resolved["gradient_clipping"] == (config.train.max_grad_norm if clips else 0.0)
    assert resolved["gradient_accumulation_steps"] == 1
    assert resolved["bf16"]["enabled"] == (dtype == "bf16")
    assert resolved["fp16"]["enabled"] == (dtype == "fp16")
    zero = resolved["zero_optimization"]
    accumulates = resolved["data_types"]["grad_accum_dtype"]
    assert accumulates == (dtype if zero["stage"] == 0 else "fp32")
    assert not (zero["overlap_comm"] and zero["stage"] < 2)


@pytest.mark.parametrize(
    ("preset", "method", "dtype", "coalesced"),
    [
        ("zero0", "lora", "bf16", False),
        ("zero1", "lora", "bf16", False),  # BF16_Optimizer has no such path
        ("zero1", "lora", "fp32", True),
        ("zero1", "full", "fp16", False),
        ("zero2", "lora", "fp32", True),
        ("zero2", "lora", "bf16", False),  # would be added up in bf16
        ("zero2", "ia3", "fp32", True),
        ("zero2", "full", "bf16", False),
        ("zero2", "partial", "fp32", False),
        ("zero3", "lora", "bf16", False),
        ("zero3", "lora", "fp32", True),
        ("zero3", "full", "fp32", False),
    ],
)
def test_coalesced_reduction(make, preset, method, dtype, coalesced) -> None:
    config = make(model={"dtype": dtype}, adapter={"method": method}, engine={"preset": preset})
    resolved = resolve(config)
    assert use_coalesced_reduction(config, resolved) is coalesced
    assert resolved["managed_gradient_accumulation"] is coalesced


@pytest.mark.parametrize(("r", "threshold"), [(1, 100_000), (8, 524_288), (256, 1_000_000)])
def test_adapters_stay_whole_at_stage_3_and_the_base_does_not(make, r, threshold) -> None:
    """Above r x the widest layer, and below the smallest matrix of a model of a billion."""
    config = make(adapter={"r": r}, engine={"preset": "zero3"})
    zero = resolve(config)["zero_optimization"]
    assert zero["stage3_param_persistence_threshold"] == threshold
    full = make(adapter={"method": "full"}, engine={"preset": "zero3"})
    assert resolve(full)["zero_optimization"]["stage3_param_persistence_threshold"] == 100_000


def test_overrides_win_over_the_preset_and_count_in_whole_numbers(make) -> None:
    overrides = {
        "zero_optimization": {"reduce_bucket_size": 1e6, "stage3_param_persistence_threshold": 0},
        "fp16": {"initial_scale_power": 8},
        "flops_profiler": {"enabled": True},
    }
    config = make(model={"dtype": "fp16"}, engine={"preset": "zero3", "overrides": overrides})
    resolved = resolve(config)
    zero = resolved["zero_optimization"]
    assert zero["reduce_bucket_size"] == 1_000_000
    assert type(zero["reduce_bucket_size"]) is int
    assert zero["stage3_param_persistence_threshold"] == 0
    assert resolved["fp16"]["initial_scale_power"] == 8
    assert resolved["fp16"]["enabled"] is True
    assert resolved["flops_profiler"] == {"enabled": True}


def test_stage_from_overrides_brings_its_own_defaults(make) -> None:
    config = make(engine={"overrides": {"zero_optimization": {"stage": 3}}})
    assert "stage3_max_live_parameters" in resolve(config)["zero_optimization"]
    assert zero_settings(config)["stage"] == 3


HUGGING_FACE = {
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupCosineLR",
        "params": {"warmup_num_steps": "auto", "total_num_steps": "auto"},
    },
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
"""The example of the Hugging Face documentation."""


def own_config(make, tmp_path: Path, raw: dict[str, Any], **sections):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(raw))
    return make(engine={"config": str(path)}, **sections)


def test_a_users_own_config_with_auto_values(make, tmp_path: Path) -> None:
    resolved = resolve(own_config(make, tmp_path, HUGGING_FACE))
    assert "auto" not in leaves(resolved)
    assert "optimizer" not in resolved
    assert "scheduler" not in resolved
    assert resolved["steps_per_print"] == 2000
    zero = resolved["zero_optimization"]
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert zero["sub_group_size"] == 10**9


def test_numbers_that_say_what_the_recipe_says_are_fine(make, tmp_path: Path) -> None:
    raw = HUGGING_FACE | {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    }
    train = {"global_batch_size": 16, "per_device_train_batch_size": 2}
    resolved = resolve(own_config(make, tmp_path, raw, train=train))
    assert resolved["train_batch_size"] == 4
    assert resolved["gradient_accumulation_steps"] == 1


def test_contradictions_are_refused(make, tmp_path: Path) -> None:
    raw = HUGGING_FACE | {
        "train_micro_batch_size_per_gpu": 8,
        "fp16": {"enabled": True},
        "gradient_clipping": 0.1,
        "scheduler": {"type": "WarmupLR", "params": {}},
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-5}},
    }
    assert faults_of(own_config(make, tmp_path, raw)) == [
        "engine.config (ds.json).train_micro_batch_size_per_gpu = 8: the recipe says 1 "
        '(train.per_device_train_batch_size); remove it here, or write "auto".',
        "engine.config (ds.json).gradient_clipping = 0.1: the recipe says 1.0 "
        '(train.max_grad_norm); remove it here, or write "auto".',
        "engine.config (ds.json).fp16.enabled = true: the recipe says false "
        '(model.dtype = bf16); remove it here, or write "auto".',
        "engine.config (ds.json).optimizer.params.lr = 3e-05: the recipe says 0.0001 "
        "(train.learning_rate); remove the block.",
        "engine.config (ds.json).scheduler.type = WarmupLR: the recipe says cosine "
        "(train.lr_scheduler_type); remove the block.",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1,}', "line 1, column 9: not valid JSON"),
        ('{"bf16": {}, "bf16": {}}', "bf16 is written twice"),
        ("[1]", "must hold one JSON object"),
    ],
)
def test_broken_own_configs(make, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "ds.json").write_text(text)
    config = make(engine={"config": str(tmp_path / "ds.json")})
    assert words in faults_of(config)[0]
    assert zero_settings(config) == {}


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (
            {"zero_optimisation": {"stage": 2}},
            "zero_optimisation: DeepSpeed has no such setting. Did you mean zero_optimization?",
        ),
        (
            {"zero_optimization": {"reduce_buket_size": 1}},
            "zero_optimization.reduce_buket_size: DeepSpeed has no such setting. "
            "Did you mean zero_optimization.reduce_bucket_size?",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            "zero_optimization.offload_optimizer.devise: DeepSpeed has no such setting. "
            "Did you mean zero_optimization.offload_optimizer.device?",
        ),
        (
            {"overlap_comm": True},
            "overlap_comm: DeepSpeed has no such setting. "
            "Did you mean zero_optimization.overlap_comm?",
        ),
        (
            {"zero_optimization": {"stage": 4}},
            "zero_optimization.stage = 4: must be one of 0, 1, 2, 3.",
        ),
        (
            {"zero_optimization": {"overlap_comm": "yes"}},
            'zero_optimization.overlap_comm = "yes": must be true or false.',
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": 0.5}},
            "zero_optimization.reduce_bucket_size = 0.5: must be a whole number.",
        ),
        (
            {"bf16": True},
            "bf16 = true: must be a block {...} of settings.",
        ),
        (
            {"elasticity": {"enabled": False}},
            "elasticity: was removed from DeepSpeed 0.19; global_batch_size stays the same on "
            "any number of ranks here.",
        ),
        (
            {"zero_optimization": {"mics_shard_size": 8}},
            "zero_optimization.mics_shard_size: was removed from DeepSpeed 0.19; use "
            "zero_hpz_partition_size.",
        ),
        (
            {"data_efficiency": {"enabled": True}},
            "data_efficiency: would choose other rows than the recipe says; ds-train orders the "
            "data itself, in section data.",
        ),
        (
            {"activation_checkpointing": {"partitioned_activations": True}},
            "activation_checkpointing: does nothing for Hugging Face models; use "
            "model.gradient_checkpointing: true.",
        ),
        (
            {"managed_gradient_accumulation": True},
            "managed_gradient_accumulation: is decided by ds-train, whose step accumulates itself.",
        ),
    ],
)
def test_lint(make, overrides, fault: str) -> None:
    config = make(engine={"preset": "zero2", "overrides": overrides})
    assert faults_of(config) == [f"engine.overrides.{fault}"]


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("zero1", {"zero_optimization": {"overlap_comm": True}}, "nothing to overlap"),
        ("zero0", {"data_types": {"grad_accum_dtype": "fp32"}}, "use stage 1 or more"),
        ("zero2", {"comms_logger": {"enabled": False}}, "turns the logger on"),
        ("zero2", {"zero_optimization": {"compute_grad_norm": False}}, "needed to clip"),
    ],
)
def test_impossible_values(make, preset, overrides, words) -> None:
    config = make(engine={"preset": preset, "overrides": overrides})
    assert words in faults_of(config)[0]


def test_unknown_preset(make) -> None:
    assert faults_of(make(engine={"preset": "zer02"})) == [
        'engine.preset = "zer02": no such preset; there are zero0, zero1, zero2, '
        "zero2_bf16_states, zero2_offload_cpu, zero3, zero3_bf16_states, zero3_offload_cpu, "
        "zero3_offload_nvme, zeropp. Did you mean zero2?"
    ]


def test_every_preset_and_each_of_its_knobs_has_its_reason() -> None:
    text = (ds_configs_dir() / "README.md").read_text()
    for name in preset_names():
        assert f"`{name}`" in text
        for key in read_preset(name)["zero_optimization"]:
            assert f"`{key}`" in text, f"{key} of {name} has no reason in ds_configs/README.md"
        for key in read_preset(name).get("bf16", {}):
            assert f"`{key}`" in text, f"{key} of {name} has no reason in ds_configs/README.md"


def test_deep_merge_leaves_its_arguments_alone() -> None:
    base, over = {"a": {"b": 1}}, {"a": {"c": 2}, "d": [1]}
    assert deep_merge(base, over) == {"a": {"b": 1, "c": 2}, "d": [1]}
    assert base == {"a": {"b": 1}}
