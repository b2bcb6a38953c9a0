"""The plan's highest moment of a backward pass, and oneDNN's primitives, against a real step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from backward_worker import LENGTH, LOSS, RANK, ROWS
from test_activations import sizes_of
from transformers import AutoConfig

from ds_train.config.run import RunConfig
from ds_train.ops import native
from ds_train.plan.activations import activations
from ds_train.plan.backward_peak import highest_moment
from ds_train.plan.cluster import Cluster
from ds_train.plan.count import shape_of
from ds_train.plan.cpu_heap import GIVE_BACK
from ds_train.plan.cpu_libraries import library_bytes, products
from ds_train.plan.estimate import estimate
from ds_train.plan.loss_memory import LossMemory, loss_memory
from ds_train.plan.setting import Setting

OWN_GEMMS = native.available("cpu") is None and native.cpu_gemms(torch.bfloat16)
CASES = [
    # what passes: a gated feed-forward part, without and with recomputation
    ("llama", "lora", "fp32", True, 0.04),
    ("llama", "lora", "bf16", True, 0.07),
    ("llama", "lora", "fp32", False, 0.02),
    ("llama", "lora", "bf16", False, 0.02),
    ("qwen3", "ia3", "bf16", True, 0.06),
    ("gpt_neox", "lora", "fp32", True, 0.04),
    # scores: in the attention
    ("gemma2", "lora", "fp32", True, 0.05),
    ("gemma2", "lora", "bf16", False, 0.03),
    ("deepseek_v3", "lora", "bf16", True, 0.05),
    ("gpt2", "lora", "bf16", True, 0.05),
]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, int]]:
    """Peak and new products of every case, in one process for all."""
    names = ("model_type", "method", "dtype", "recompute")
    cases = [
        {**dict(zip(names, case, strict=False)), "sizes": sizes_of(case[0], 3)} for case in CASES
    ]
    file = tmp_path_factory.mktemp("backward") / "cases.json"
    file.write_text(json.dumps(cases))
    worker = Path(__file__).with_name("backward_worker.py")
    # what is freed goes back to the system at once, and oneDNN says what it compiles
    wanted = {**GIVE_BACK, "ONEDNN_VERBOSE": "profile_create"}
    done = subprocess.run(
        [sys.executable, str(worker), str(file)],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **wanted},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = (one for one in done.stdout.splitlines() if one.startswith("RESULT"))
    found: list[dict[str, int]] = json.loads(line.removeprefix("RESULT"))
    return found


def setting_of(
    make: Callable[..., RunConfig],
    model: str | dict[str, Any],
    method: str,
    dtype: str,
    recompute: bool,
    rows: int = ROWS,
) -> Setting:
    """The worker's step as a recipe, on one process of a CPU; `model`: type, or config.json."""
    raw = model
    if isinstance(model, str):
        raw = AutoConfig.for_model(model, **sizes_of(model, 3)).to_dict()
    config = make(
        model={"name_or_path": "x", "dtype": dtype, "gradient_checkpointing": recompute},
        adapter={"method": method, **({"r": RANK} if method == "lora" else {})},
        data={"max_length": LENGTH},
        train={"per_device_train_batch_size": rows},
    )
    return estimate(config, shape_of(raw), Cluster("here", 1, 1, is_cpu=True)).setting


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=["-".join(map(str, c[:4])) for c in CASES]
)
def test_the_highest_moment(
    make: Callable[..., RunConfig], real: list[dict[str, int]], number: int
) -> None:
    *case, error = CASES[number]
    setting = setting_of(make, *case)
    kept = activations(setting.trainable, setting.config, ROWS, LENGTH, on_cpu=True)
    plan = highest_moment(setting, kept, loss_memory(setting))
    assert sum(size for _, size in plan) == pytest.approx(real[number]["peak"], rel=error)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bf16 in oneDNN on this CPU"
)
def test_products_that_onednn_compiles(
    make: Callable[..., RunConfig], real: list[dict[str, int]]
) -> None:
    """Of the first case in bf16; those after it find some there already."""
    assert real[0]["products"] == 0  # fp32 is MKL's
    setting = setting_of(make, *CASES[1][:4])
    found = set(products(setting))
    proof = {one for one in found if one[0] == "forward" and one[1] != setting.tokens}
    of_loss = 0 if OWN_GEMMS else 2  # logits and their gradient
    assert real[1]["products"] == len(found - proof) + of_loss
    # matrices of 4 sizes in the model and of 5 in its adapter, each once for the proof
    assert len(proof) == 9


@pytest.mark.skipif(not OWN_GEMMS, reason="the CPU's own products in bf16 do not run here")
def test_what_the_loss_leaves_behind(
    make: Callable[..., RunConfig], real: list[dict[str, int]]
) -> None:
    tokens, width, vocab = LOSS
    raw = AutoConfig.for_model(
        "llama", **{**sizes_of("llama", 1), "hidden_size": width, "vocab_size": vocab}
    ).to_dict()
    setting = setting_of(make, raw, "lora", "bf16", False, rows=tokens // LENGTH)
    memory = loss_memory(setting)
    assert memory.stays == pytest.approx(real[-1]["stays"], rel=0.05)
    assert memory.chunk == 0  # all of it is less than the 64 MiB that may stay


def test_what_libraries_keep(make: Callable[..., RunConfig]) -> None:
    lora, full = (setting_of(make, "llama", one, "bf16", False) for one in ("lora", "full"))
    assert library_bytes(lora) > library_bytes(full) > 0
    fp32 = setting_of(make, "llama", "lora", "fp32", False)
    assert library_bytes(fp32) == 4 * 64 * 160  # its largest weight, which is less than MKL's most
    on_gpu = replace(fp32, cluster=Cluster("a GPU", 1, 1, gpu_memory=2**30))
    assert library_bytes(on_gpu) == 0


def test_one_is_gone_when_the_other_comes(make: Callable[..., RunConfig]) -> None:
    """A layer that is recomputed does not stand beside the chunk of logits."""
    setting = setting_of(make, "llama", "lora", "bf16", True)
    kept = activations(setting.trainable, setting.config, ROWS, LENGTH, on_cpu=True)
    names = {}
    for chunk in (0, 10**9):
        moment = highest_moment(setting, kept, LossMemory(chunk, 0))
        names[chunk] = [name for name, _ in moment]
    assert "last layer, passing" in names[0]
    assert "loss, chunk of logits" in names[10**9]
    assert "last layer, passing" not in names[10**9]
