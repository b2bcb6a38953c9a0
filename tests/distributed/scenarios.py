"""The trainings that worker.py makes, on two ranks and on one, and the recipe they start from.

All are LoRA or full fine-tuning of one tiny random Llama on sixty short rows, fp32, four steps of
eight packed rows; each scenario changes some keys. `TWO` runs on two ranks, then `ONE` on one rank,
so that a name in both ("cut-...") is resumed by the second.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

STEPS = 4
TRIES_NVME = "DS_TRAIN_TEST_NVME" in os.environ
"""Needs libaio and takes minutes: async_io is compiled, and gigabytes of buffers are made."""
# Parameters under 100,000 elements are never sharded by default: at 0 stage 3 really shards.
SHARD_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
LAYOUTS = [(stage, micro) for stage in (0, 1, 2, 3) for micro in (4, 1)]
FAMILIES: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"adapter.method": "full"},
}
KINDS: dict[str, dict[str, Any]] = {
    "dora": {"adapter.use_dora": True},
    "rslora-plus": {"adapter.use_rslora": True, "adapter.lora_plus_lr_ratio": 4.0},
    "ia3": {"adapter.method": "ia3"},
    "prompt": {"adapter.method": "prompt_tuning", "data.packing": False},
    "prefix": {"adapter.method": "prefix_tuning", "data.packing": False},
    "partial": {"adapter.method": "partial", "adapter.trainable": [r"layers\.1\.", "norm"]},
    "modules-to-save": {"adapter.modules_to_save": ["lm_head"]},
    "lora-head": {"adapter.target_modules": ["q_proj", "lm_head"]},
    "decay": {"train.weight_decay": 0.1},
    "checkpointing": {"model.gradient_checkpointing": True},
    "unpacked": {"data.packing": False},
    "dropout": {"adapter.dropout": 0.2},
    "random": {"adapter.method": "full", "model.init": "random"},
    "offload": {},
    "bf16": {"model.dtype": "bf16"},
    # A first loss scale so high that the gradients overflow until it has come down.
    "fp16": {
        "model.dtype": "fp16",
        "train.max_steps": 8,
        "engine.overrides": {"fp16": {"initial_scale_power": 18}},
    },
    "bf16-full": {"model.dtype": "bf16", "adapter.method": "full"},
}
CURRICULUM = {
    "data.packing": False,
    "curriculum.metric": "length",
    "curriculum.pacing": {"start": 0.2, "end_at": 1.0},
}
REFRESH = {
    **CURRICULUM,
    "curriculum.metric": "loss",
    "curriculum.refresh_at": [0.25, 0.5],
    "train.max_steps": 8,
}
"""Scored again after steps 2 and 4."""
SEQ_LEN: dict[str, dict[str, Any]] = {
    mode: {
        "curriculum.order": "uniform",
        "curriculum.seq_len": {
            "start": start,
            "end": 16,
            "end_at": 1.0,
            "step": 2,
            "mode": mode,
        },
    }
    for mode, start in (("reshape", 8), ("truncate", 12), ("window", 8))
}
"""Rows of 8 or 12 to 14 tokens, of samples of up to 65."""
ROLLBACK = {
    "data.packing": False,
    "checkpoint.every": "2 steps",
    "train.rollback": {"attempts": 1},
}
"""Rows of one sample each: a step's samples are not in the other steps of the epoch."""
TASK_FILES = {
    "say.yaml": """\
task: say
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: "{{completion.strip()}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
""",
    "pick.yaml": """\
task: pick
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: 0
doc_to_choice: "{{[completion.strip(), prompt]}}"
""",
}
"""Two tasks of lm_eval on the training rows; their data file lies one folder up."""


def task_changes(folder: Path) -> dict[str, Any]:
    """Both tasks after two steps and at the end."""
    return {
        "evaluate.tasks": ["pick", "say"],
        "evaluate.task_path": str(folder / "tasks"),
        "evaluate.shots": [0, 2],
        "evaluate.tasks_every": "2 steps",
    }


SHARED = {"engine.sequence_parallel_size": 2}
"""Both ranks share every row; each scenario is compared with one that shares none."""
SHARED_KINDS: dict[str, dict[str, Any]] = {
    **{
        f"full-z{stage}": {"adapter.method": "full", "engine.preset": f"zero{stage}"}
        for stage in (1, 2, 3)
    },
    "lora-z0": {"engine.preset": "zero0"},
    "lora-z3": {"engine.preset": "zero3"},
    "checkpointing-z3": {"model.gradient_checkpointing": True, "engine.preset": "zero3"},
    "unpacked-z1": {"data.packing": False, "engine.preset": "zero1"},
    "seq-len-window": SEQ_LEN["window"],
}
TWELVE_STEPS = {"train.max_steps": 12, "train.lr_scheduler_type": "constant"}


def write_inputs(folder: Path) -> None:
    """A tiny model and sixty rows of prompt and completion."""
    from ds_train.model.tiny import save_tiny  # torch: only where the fixture runs

    save_tiny(folder / "model", "llama", tie_word_embeddings=False)
    # 13.1 million parameters, 52 MB in fp32
    wide = {"hidden_size": 256, "intermediate_size": 1152, "num_hidden_layers": 12, "head_dim": 64}
    save_tiny(folder / "model-50mb", "llama", **wide)
    draw = random.Random(0)
    words = ["red", "green", "blue", "one", "two", "three", "stone", "river"]
    rows = [
        {
            "prompt": " ".join(draw.choices(words, k=draw.randint(1, 6))),
            "completion": " " + " ".join(draw.choices(words, k=draw.randint(1, 6))),
        }
        for _ in range(60)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASK_FILES.items():
        (folder / "tasks").mkdir(exist_ok=True)
        (folder / "tasks" / name).write_text(text)


def recipe(folder: Path, run: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The common recipe with dotted `changes`."""
    result: dict[str, Any] = {
        "output_dir": str(folder / "runs" / run),
        "model": {"name_or_path": str(folder / "model"), "dtype": "fp32"},
        "adapter": {"method": "lora", "r": 4},
        "data": {
            "train": [{"path": str(folder / "rows.jsonl"), "format": "prompt_completion"}],
            "validation": {"fraction": 0.1},
            "max_length": 128,
            "cache_dir": str(folder / "cache"),
        },
        "train": {
            "global_batch_size": 8,
            "per_device_train_batch_size": 4,
            "max_steps": STEPS,
            "learning_rate": 0.01,
            "warmup_steps": 1,
        },
        "engine": {"preset": "zero2", "overrides": {}},
        "report": {"progress": "none"},
    }
    for key, value in changes.items():
        section, name = key.split(".")
        result[section] = {**result.get(section, {}), name: value}
    if "3" in result["engine"]["preset"]:
        result["engine"]["overrides"] = {**SHARD_ALL, **result["engine"]["overrides"]}
    return result


def scenario(
    folder: Path, name: str, changes: dict[str, Any], *, run: str | None = None, **rest: Any
) -> dict[str, Any]:
    """One item of the worker's plan."""
    return {"name": name, "recipe": recipe(folder, run or name, changes), **rest}


def two_rank_plan(folder: Path) -> list[dict[str, Any]]:
    """What two ranks train."""
    plan = []
    for family, changes in FAMILIES.items():
        for stage, micro in LAYOUTS:
            layout = {"engine.preset": f"zero{stage}", "train.per_device_train_batch_size": micro}
            plan.append(scenario(folder, f"{family}-z{stage}-m{micro}", {**changes, **layout}))
        for stage in (2, 3):
            layout = {"engine.preset": f"zero{stage}"}
            # Stopped after two steps: once to go on alike, once to go on otherwise (on one rank).
            name = f"cut-{family}-z{stage}"
            plan.append(scenario(folder, name, {**changes, **layout}, stop_after=2))
            plan.append(scenario(folder, f"{name}-on", {**changes, **layout}, run=name))
            other = f"moved-{family}-z{stage}"
            plan.append(scenario(folder, other, {**changes, **layout}, stop_after=2))
    for kind, changes in KINDS.items():
        for stage in (1, 3):
            layout = {"engine.preset": f"zero{stage}"}
            if kind == "offload":
                layout = {"engine.preset": f"zero{max(stage, 2)}_offload_cpu"}
            plan.append(scenario(folder, f"{kind}-z{stage}", {**changes, **layout}))
    fp16 = {**KINDS["fp16"], "engine.preset": "zero0"}
    plan.append(scenario(folder, "fp16-z0", fp16))
    plan.append(scenario(folder, "cut-fp16-z0", fp16, stop_after=4))
    plan.append(scenario(folder, "cut-fp16-z0-on", fp16, run="cut-fp16-z0"))
    for stage in (0, 1):  # no gradient overflows, which stages count in other ways
        calm = {"engine.overrides": {"fp16": {"initial_scale_power": 12}}}
        layout = {"adapter.method": "full", "engine.preset": f"zero{stage}"}
        plan.append(scenario(folder, f"fp16-calm-z{stage}", {**fp16, **calm, **layout}))
    for stage in (1, 2, 3):
        small = {"engine.preset": f"zero{stage}", "train.per_device_train_batch_size": 1}
        plan.append(scenario(folder, f"bf16-small-z{stage}", {**KINDS["bf16"], **small}))
        if stage > 1:
            states = {**KINDS["bf16-full"], "engine.preset": f"zero{stage}_bf16_states"}
            plan.append(scenario(folder, f"bf16-states-z{stage}", states))
            cut = f"cut-bf16-states-z{stage}"
            plan.append(scenario(folder, cut, states, stop_after=2))
            plan.append(scenario(folder, f"{cut}-on", states, run=cut))
    hpz = {"zero_optimization": {**SHARD_ALL["zero_optimization"], "zero_hpz_partition_size": 2}}
    zeropp = {"engine.preset": "zeropp", "engine.overrides": hpz}
    plan.append(scenario(folder, "zeropp", zeropp))  # its groups can be made once in a process
    plan.append(scenario(folder, "pissa", {"adapter.init": "pissa"}))
    plan.append(scenario(folder, "cut-pissa", {"adapter.init": "pissa"}, stop_after=2))
    plan.append(scenario(folder, "cut-pissa-on", {"adapter.init": "pissa"}, run="cut-pissa"))
    plan.append(scenario(folder, "cut-dropout", KINDS["dropout"], stop_after=2))
    plan.append(scenario(folder, "cut-dropout-on", KINDS["dropout"], run="cut-dropout"))
    plan.append(scenario(folder, "curriculum", CURRICULUM))
    plan.append(scenario(folder, "cut-curriculum", CURRICULUM, stop_after=2))
    plan.append(scenario(folder, "cut-curriculum-on", CURRICULUM, run="cut-curriculum"))
    plan.append(scenario(folder, "moved-curriculum", CURRICULUM, stop_after=3))
    for stage in (0, 1, 2, 3):
        layout = {"engine.preset": f"zero{stage}"}
        plan.append(scenario(folder, f"refresh-z{stage}", {**REFRESH, **layout}))
    packed = {**REFRESH, "data.packing": True, "adapter.dropout": 0.2}
    plan.append(scenario(folder, "refresh-packed", packed))
    for name, changes, last in (
        ("cut-refresh", REFRESH, 3),
        ("cut-refresh-packed", packed, 3),
        ("border-refresh", REFRESH, 4),
    ):
        plan.append(scenario(folder, name, changes, stop_after=last))
        plan.append(scenario(folder, f"{name}-on", changes, run=name))
    plan.append(scenario(folder, "moved-refresh", REFRESH, stop_after=3))
    for mode, changes in SEQ_LEN.items():
        plan.append(scenario(folder, f"seq-len-{mode}", changes))
        plan.append(scenario(folder, f"cut-seq-len-{mode}", changes, stop_after=2))
        plan.append(scenario(folder, f"cut-seq-len-{mode}-on", changes, run=f"cut-seq-len-{mode}"))
    plan.append(scenario(folder, "seq-len-z3", {**SEQ_LEN["reshape"], "engine.preset": "zero3"}))
    plan.append(scenario(folder, "twelve-steps", TWELVE_STEPS))
    unwatched = {"report.communication_every": 0, "engine.preset": "zero3"}
    plan.append(scenario(folder, "unwatched", unwatched))
    tasks = task_changes(folder)
    for stage in (0, 1, 2, 3):
        plan.append(scenario(folder, f"tasks-z{stage}", {**tasks, "engine.preset": f"zero{stage}"}))
    plan.append(scenario(folder, "cut-tasks", tasks, stop_after=2))
    plan.append(scenario(folder, "cut-tasks-on", tasks, run="cut-tasks"))
    for kind, changes in SHARED_KINDS.items():
        plan.append(scenario(folder, f"shared-{kind}", {**changes, **SHARED}))
    plan.append(scenario(folder, "shared-tasks", {**tasks, **SHARED}))
    for name, first, then in (("shared-cut", SHARED, {}), ("whole-cut", {}, SHARED)):
        plan.append(scenario(folder, name, first, stop_after=2))
        plan.append(scenario(folder, f"{name}-on", then, run=name))
    big = {"model.name_or_path": str(folder / "model-50mb"), "engine.preset": "zero3"}
    plan.append(scenario(folder, "big-base", {**big, "train.max_steps": 1}))
    if TRIES_NVME:
        disk = {"offload_optimizer": {"nvme_path": str(folder / "nvme")}}
        whole = {**big, "adapter.method": "full", "train.max_steps": 3}
        nvme = {
            **whole,
            "engine.preset": "zero3_offload_nvme",
            "engine.overrides": {"zero_optimization": disk},
        }
        plan.append(scenario(folder, "big-full", whole))
        plan.append(scenario(folder, "cut-nvme", nvme, stop_after=2))
        plan.append(scenario(folder, "cut-nvme-on", nvme, run="cut-nvme"))
    full_disk = {"checkpoint.every": "1 step"}
    plan.append(scenario(folder, "disk-full", full_disk, disk_full_at=4))
    behind = {**full_disk, "checkpoint.background": True}
    plan.append(scenario(folder, "disk-full-behind", behind, disk_full_at=4))
    plan.append(scenario(folder, "saved-behind", behind))
    plan.append(scenario(folder, "saved-before", full_disk))
    plan.append(scenario(folder, "disk-full-at-once", full_disk, disk_full_at=1))
    adapter = folder / "runs" / "lora-z2-m4" / "checkpoints" / f"step-{STEPS:08d}"
    plan.append(scenario(folder, "continued", {"adapter.path": str(adapter)}))
    plan.append(scenario(folder, "diverged", {"train.learning_rate": 1e30}))
    plan.append(scenario(folder, "rolled-back", ROLLBACK, poisoned_step=3))
    plan.append(scenario(folder, "rolled-back-on", ROLLBACK, run="rolled-back", poisoned_step=3))
    return plan


def chain_plan(folder: Path, stage: int, stop_after: int | None) -> list[dict[str, Any]]:
    """One start of the runs that move from one number of ranks to the next, some steps each; with
    the last start the undisturbed runs."""
    plan = []
    for family, changes in FAMILIES.items():
        layout = {
            **changes,
            "train.max_steps": 8,
            "train.per_device_train_batch_size": 1,
            "train.allow_empty_rows": True,
            "engine.preset": f"zero{stage}",
        }
        plan.append(scenario(folder, f"{family}-chain", layout, stop_after=stop_after))
        if stop_after is None:
            plan.append(scenario(folder, f"{family}-whole", layout))
    return plan


def one_rank_plan(folder: Path) -> list[dict[str, Any]]:
    """What one rank trains, after the two have ended."""
    plan = []
    for family, changes in FAMILIES.items():
        for stage, micro in ((0, 8), (1, 8), (2, 2), (3, 8)):
            layout = {"engine.preset": f"zero{stage}", "train.per_device_train_batch_size": micro}
            plan.append(scenario(folder, f"{family}-one-z{stage}", {**changes, **layout}))
        for stage, other in ((2, 3), (3, 1)):
            layout = {"engine.preset": f"zero{other}"}
            run = f"moved-{family}-z{stage}"
            plan.append(scenario(folder, f"{run}-to-z{other}", {**changes, **layout}, run=run))
    plan.append(scenario(folder, "tasks-one", task_changes(folder)))
    other_recipe = {"train.learning_rate": 0.02}
    plan.append(scenario(folder, "other-recipe", other_recipe, run="lora-z2-m4"))
    plan.append(scenario(folder, "moved-curriculum-on", CURRICULUM, run="moved-curriculum"))
    reversed_order = {**CURRICULUM, "curriculum.order": "hard_to_easy"}
    plan.append(scenario(folder, "other-curriculum", reversed_order, run="curriculum"))
    plan.append(scenario(folder, "refresh-one", REFRESH))
    plan.append(scenario(folder, "moved-refresh-on", REFRESH, run="moved-refresh"))
    for mode, changes in SEQ_LEN.items():
        plan.append(scenario(folder, f"seq-len-{mode}-one", changes))
    plan.append(scenario(folder, "complete", {}, run="lora-z2-m4"))
    adafactor = {"adapter.method": "full", "train.optim": "adafactor", "engine.preset": "zero0"}
    plan.append(scenario(folder, "adafactor", adafactor))
    one = "rolled-back-one"
    plan.append(scenario(folder, one, ROLLBACK, poisoned_step=3))
    plan.append(scenario(folder, f"{one}-on", ROLLBACK, run=one, poisoned_step=3))
    plan.append(scenario(folder, "cut-adafactor", adafactor, stop_after=2))
    plan.append(scenario(folder, "cut-adafactor-on", adafactor, run="cut-adafactor"))
    return plan
