"""Each rule refuses what it names, and leaves what is next to it alone."""

from __future__ import annotations

from typing import Any

import pytest

from ds_train.plan import rules
from ds_train.plan.rules import check_rules

OFFLOAD = "zero_optimization"


def zero(**settings: Any) -> dict[str, Any]:
    return {"overrides": {"zero_optimization": settings}}


BF16_STATES = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
REFUSED: list[tuple[dict[str, Any], str]] = [
    # settings of another method
    ({"adapter": {"method": "ia3", "use_dora": True}}, "adapter.use_dora: adapter.method = ia3"),
    ({"adapter": {"method": "full", "use_rslora": True}}, "has no use for it (only lora)"),
    ({"adapter": {"method": "ia3", "init": "pissa"}}, "adapter.init: adapter.method = ia3"),
    ({"adapter": {"method": "full", "lora_plus_lr_ratio": 16}}, "adapter.lora_plus_lr_ratio"),
    ({"adapter": {"method": "full", "target_modules": ["q_proj"]}}, "(only lora, ia3)"),
    ({"adapter": {"method": "full", "modules_to_save": ["lm_head"]}}, "adapter.modules_to_save"),
    ({"adapter": {"method": "full", "path": "org/adapter"}}, "adapter.path: adapter.method = full"),
    ({"adapter": {"trainable": ["x"]}}, "adapter.trainable: adapter.method = lora has no use"),
    ({"adapter": {"feedforward_modules": ["x"]}}, "adapter.feedforward_modules"),
    ({"adapter": {"prompt_init_text": "x"}}, "adapter.prompt_init_text"),
    ({"adapter": {"method": "partial"}}, "adapter.trainable is empty"),
    # rows that several ranks share
    (
        {
            "engine": {"sequence_parallel_size": 2},
            "adapter": {"method": "prefix_tuning"},
            "data": {"packing": False},
        },
        "virtual tokens before its own part of a row; set adapter.method: lora",
    ),
    (
        {
            "engine": {"sequence_parallel_size": 2},
            "curriculum": {"metric": "loss", "refresh_at": [0.5]},
        },
        "engine.sequence_parallel_size = 2 with curriculum.refresh_at",
    ),
    (
        {"engine": {"sequence_parallel_size": 2}, "model": {"attn_implementation": "eager"}},
        "model.attn_implementation = eager: it needs a mask of all positions",
    ),
    (
        {
            "engine": {"sequence_parallel_size": 2},
            "fewshot": {"losses": {}},
            "data": {"packing": False},
        },
        "engine.sequence_parallel_size = 2 with fewshot.losses",
    ),
    # adapters
    ({"adapter": {"target_modules": "(q_proj"}}, "not a regular expression"),
    ({"adapter": {"method": "partial", "trainable": ["[a"]}}, "not a regular expression"),
    (
        {
            "adapter": {
                "method": "ia3",
                "target_modules": ["q_proj"],
                "feedforward_modules": ["down_proj"],
            }
        },
        "names down_proj, not in adapter.target_modules",
    ),
    ({"adapter": {"init": "pissa", "use_dora": True}}, "both rewrite the base weight"),
    ({"adapter": {"init": "pissa"}, "engine": {"preset": "zero3"}}, "pissa with ZeRO stage 3"),
    # virtual tokens
    ({"adapter": {"method": "prompt_tuning"}}, "only its first document would see them"),
    ({"adapter": {"method": "prefix_tuning"}}, "set data.packing: false"),
    (
        {
            "adapter": {"method": "prompt_tuning", "modules_to_save": ["lm_head"]},
            "data": {"packing": False},
        },
        "adapter.modules_to_save: adapter.method = prompt_tuning",
    ),
    (
        {
            "adapter": {"method": "prefix_tuning"},
            "data": {"packing": False},
            "model": {"gradient_checkpointing": True},
        },
        "a key-value cache, which recomputing drops",
    ),
    # model
    ({"model": {"init": "random"}}, "random weights would stay frozen"),
    ({"model": {"config_overrides": {"n": 1}}}, "does not fit the checkpoint's weights"),
    (
        {"model": {"attn_implementation": "flash_attention_2", "dtype": "fp32"}},
        "computes in 16 bits only",
    ),
    (
        {"model": {"quantization": "nf4"}, "adapter": {"method": "full"}},
        "quantised weights can't train",
    ),
    (
        {"model": {"quantization": "nf4"}, "engine": {"preset": "zero3"}},
        "packed weights can't be sharded",
    ),
    (
        {"model": {"quantization": "int8"}, "adapter": {"init": "pissa"}},
        "taken out of full-precision weights",
    ),
    # training
    ({"train": {"optim": "adafactor"}}, "factored second moment is lost"),
    (
        {"train": {"optim": "adafactor", "adam_beta2": 0.95}, "engine": {"preset": "zero0"}},
        "train.adam_beta2: train.optim = adafactor has no use for it",
    ),
    ({"train": {"decay_fraction": 0.1}}, "(only wsd); remove it"),
    ({"train": {"lr_scheduler_type": "constant", "min_lr_ratio": 0.1}}, "constant never falls"),
    ({"train": {"warmup_steps": 101}}, "before the warm-up does"),
    ({"train": {"warmup_steps": "1 epoch"}}, "must be steps, a share of the run, or tokens"),
    # data
    ({"data": {"max_length": 1}}, "a row needs at least 2 tokens"),
    (
        {"data": {"train": [{"path": "org/x", "format": "text"}], "loss_on": "assistant"}},
        "data.loss_on = assistant: data.train[0] is plain text",
    ),
    (
        {"data": {"train": [{"path": "org/x", "format": "text", "loss_on": "completion"}]}},
        "data.train[0].loss_on = completion",
    ),
    (
        {"data": {"train": [{"path": "org/x", "format": "alpaca", "labels": {"0": "a"}}]}},
        "data.train[0].labels: format = alpaca has no use for it",
    ),
    (
        {"data": {"train": [{"path": "org/x", "format": "classification", "template": "Is it?"}]}},
        "must contain {text}",
    ),
    (
        {"data": {"validation": {"fraction": None}}, "evaluate": {"every": "10 steps"}},
        "evaluate.every: there is no validation data",
    ),
    (
        {"data": {"validation": {"fraction": 0}}, "evaluate": {"at_start": True}},
        "evaluate.at_start: there is no validation data",
    ),
    # engine
    ({"engine": {"preset": "zeropp"}}, "must divide the 2 processes"),
    ({"engine": zero(zero_hpz_partition_size=2)}, "only stage 3 shards weights"),
    (
        {"engine": zero(stage=3, stage3_module_granularity_threshold=1000)},
        "stage3_module_granularity_threshold = 1000 with adapter.method = lora",
    ),
    (
        {"engine": {"overrides": {"bf16": {"bf16_master_weights_and_grads": True}}}},
        "only with bf16_optimizer_states, or with the optimizer on the CPU; set engine.preset: "
        "zero2_bf16_states",
    ),
    (
        {"engine": {"preset": "zero2_bf16_states"}, "model": {"dtype": "fp32"}},
        "bf16_optimizer_states = true with model.dtype = fp32: has no effect there",
    ),
    (
        {"engine": {"preset": "zero1", "overrides": {"bf16": BF16_STATES}}},
        "below ZeRO stage 2 DeepSpeed 0.19 keeps fp32 without a word",
    ),
    (
        {"engine": {"preset": "zero2_offload_cpu", "overrides": {"bf16": BF16_STATES}}},
        "with the optimizer on the cpu: its states are fp32 there",
    ),
    (
        {"engine": {"overrides": {"bf16": {"bf16_optimizer_states": True}}}},
        "needs bf16.bf16_master_weights_and_grads: true",
    ),
    ({"engine": zero(stage=3, zero_quantized_weights=True)}, "its quantizer knows fp16 only"),
    ({"engine": zero(stage=3, zero_quantized_gradients=True)}, "DeepSpeed 0.19 crashes"),
    (
        {"engine": zero(zero_quantized_weights=True), "model": {"dtype": "fp16"}},
        "only stage 3 has it",
    ),
    (
        {"engine": zero(stage=3, offload_optimizer={"device": "cpu", "super_offload": True})},
        "keeps Adam's moments in a process of its own",
    ),
    (
        {"engine": zero(offload_optimizer={"device": "nvme", "nvme_path": "/x"})},
        "keeps it in CPU memory without a word",
    ),
    ({"engine": zero(offload_param={"device": "cpu"})}, "needs ZeRO stage 3 or more"),
    (
        {"engine": zero(stage=0, offload_optimizer={"device": "cpu"})},
        "needs ZeRO stage 1 or more",
    ),
    (
        {"engine": zero(stage=3, offload_optimizer={"device": "nvme"})},
        "nvme_path is missing",
    ),
    ({"engine": {"preset": "zero3_offload_nvme"}}, "nvme_path is missing"),
    (
        {"engine": zero(offload_optimizer={"device": "cpu", "ratio": 0.5})},
        "only stage 3 offloads in part",
    ),
]


@pytest.fixture(autouse=True)
def all_packages_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules about packages have a test of their own."""
    monkeypatch.setattr(rules, "_is_installed", lambda name: True)


@pytest.mark.parametrize(("sections", "words"), REFUSED)
def test_refused_with_reason_and_way_out(make, sections, words) -> None:
    faults = check_rules(make(**sections), 2)
    assert any(words in fault for fault in faults), faults
    assert len(faults) == 1, faults
    assert faults[0].endswith(".")


ALLOWED: list[dict[str, Any]] = [
    {},
    {"adapter": {"method": "full"}},
    {"adapter": {"method": "full", "target_modules": "all-linear"}},
    {"adapter": {"method": "partial", "trainable": ["layers\\.1\\."]}},
    {"adapter": {"use_dora": True, "use_rslora": True, "lora_plus_lr_ratio": 16}},
    {"adapter": {"init": "pissa"}},
    {"adapter": {"modules_to_save": ["lm_head"]}, "engine": {"preset": "zero3"}},
    {"adapter": {"target_modules": ["q_proj", "lm_head"]}},
    {"adapter": {"target_modules": ".*_proj"}},
    {"adapter": {"method": "ia3"}},
    {"adapter": {"method": "prompt_tuning"}, "data": {"packing": False}},
    {"model": {"init": "random", "config_overrides": {"n": 1}}, "adapter": {"method": "full"}},
    {"model": {"quantization": "nf4"}},
    {"train": {"optim": "adafactor"}, "engine": {"preset": "zero0"}},
    {"train": {"lr_scheduler_type": "wsd", "decay_fraction": 0.1}},
    {"train": {"warmup_steps": 100}},
    {"data": {"train": [{"path": "x/y", "format": "text"}], "loss_on": "all"}},
    {"engine": {"preset": "zero2_offload_cpu"}},
    {
        "engine": {
            "preset": "zero3_offload_nvme",
            "overrides": {"zero_optimization": {"offload_optimizer": {"nvme_path": "/x"}}},
        }
    },
    {"engine": zero(stage=3, zero_hpz_partition_size=2)},
    {
        "engine": zero(stage=3, stage3_module_granularity_threshold=1000),
        "adapter": {"method": "full"},
    },
    {"engine": {"preset": "zero2_bf16_states"}},
    {"engine": {"preset": "zero3_bf16_states"}, "adapter": {"method": "full"}},
    {"engine": zero(stage=3, zero_quantized_weights=True), "model": {"dtype": "fp16"}},
]


@pytest.mark.parametrize("sections", ALLOWED)
def test_allowed(make, sections) -> None:
    assert check_rules(make(**sections), 2) == []


def test_unknown_world_size_refuses_nothing_that_depends_on_it(make) -> None:
    assert check_rules(make(engine={"preset": "zeropp"}), None) == []


def test_missing_packages(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_is_installed", lambda name: False)
    config = make(report={"trackers": ["wandb"]}, model={"quantization": "nf4"})
    assert check_rules(config, 1) == [
        "report.trackers: the package wandb is not installed; run pip install 'ds-train[wandb]', "
        "or remove it.",
        "model.quantization = nf4: the package bitsandbytes is not installed; run "
        "pip install 'ds-train[qlora]', or set quantization: none.",
    ]


def test_a_broken_engine_section_is_left_to_the_engine(make) -> None:
    assert check_rules(make(engine={"preset": "no"}), 1) == []
    assert check_rules(make(engine=zero(stage="x")), 1) == []


def test_a_folder_of_runs_is_no_package(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "wandb_like").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not rules._is_installed("wandb_like")
    assert rules._is_installed("pytest")
