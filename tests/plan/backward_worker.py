"""One training step of tiny models: what torch allocates in it, and what oneDNN compiles for it.

In a process of its own, as oneDNN says what it compiles on stdout, and to nobody who asks later.

usage: backward_worker.py CASES.json; prints a JSON list with, for each {"model_type", "sizes",
"method", "dtype", "recompute"}, the highest sum of what torch has allocated in the backward pass
since the step began, in bytes, and the oneDNN primitives that were not there before, of products;
last what the fused loss in bf16 leaves behind, in bytes of the process.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoConfig, AutoModelForCausalLM

from ds_train.config.adapter import AdapterConfig
from ds_train.model.adapter import choose_trainable
from ds_train.model.head import LanguageModel
from ds_train.ops import linear_cross_entropy

ROWS, LENGTH, RANK = 2, 256, 4
LOSS = (2048, 512, 8192)
"""Tokens, width, vocabulary."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(case: dict[str, Any]) -> LanguageModel:
    """The model with its adapter, in training."""
    torch.manual_seed(0)
    shape = AutoConfig.for_model(case["model_type"], **case["sizes"])
    model: Any = AutoModelForCausalLM.from_config(shape).to(DTYPES[case["dtype"]])
    adapter = AdapterConfig(method=case["method"], r=RANK)
    model = choose_trainable(model, adapter, base="x", seed=0)
    if case["recompute"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return LanguageModel(model).train()


def step(model: LanguageModel) -> None:
    """Forward and backward pass of one micro-batch of packed rows."""
    ids = torch.randint(3, 100, (ROWS, LENGTH))
    positions = (torch.arange(LENGTH) % (LENGTH // 2))[None].expand(ROWS, -1).contiguous()
    loss, _ = model(ids, ids, positions, ids.numel())
    with record_function("BACKWARD"):
        loss.backward()
    for parameter in model.parameters():
        parameter.grad = None


def backward_peak(model: LanguageModel) -> int:
    """Highest sum of allocations since the step began, within its backward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(model)
    events = seen.profiler.kineto_results.events()
    begin = min(one.start_ns() for one in events if one.name() == "BACKWARD")
    now = highest = 0
    changes = [(one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]"]
    for time, size in sorted(changes):
        now += size
        if time >= begin:
            highest = max(highest, now)
    return highest


def stays_of_the_loss() -> int:
    """Resident bytes after a call that were not there before, its gradient left out."""
    tokens, dim, vocab = LOSS
    hidden = torch.zeros(tokens, dim, dtype=torch.bfloat16, requires_grad=True)
    weight, labels = torch.zeros(vocab, dim, dtype=torch.bfloat16), torch.zeros(tokens).long()
    before = resident()
    loss = linear_cross_entropy(hidden, weight, labels)
    after = resident()
    assert isinstance(loss, torch.Tensor)
    return after - before - hidden.numel() * hidden.element_size()


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Every case; primitives are counted in the first step, memory in the second."""
    torch.set_num_threads(1)
    cases = json.loads(Path(sys.argv[1]).read_text())
    found, stdout = [], os.dup(1)
    for case in cases:
        model = build(case)
        with tempfile.TemporaryFile() as said:
            os.dup2(said.fileno(), 1)
            step(model)
            os.dup2(stdout, 1)
            said.seek(0)
            lines = said.read().decode().splitlines()
        made = sum("create:cache_miss" in line and ",matmul," in line for line in lines)
        found.append({"peak": backward_peak(model), "products": made})
    found.append({"stays": stays_of_the_loss()})
    print("RESULT", json.dumps(found))


if __name__ == "__main__":
    main()
