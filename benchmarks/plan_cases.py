"""The runs that `plan_accuracy.py` measures: recipes on tiny models for traffic, larger ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ds_train.model.tiny import save_tiny

SHARD_ALL = {"stage3_param_persistence_threshold": 0}
"""On tiny models nothing would be sharded."""
NO_REUSE = {
    **SHARD_ALL,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}
"""What a model far beyond stage3_max_live_parameters meets: each layer is gathered when it runs."""
SOME_REUSE = {
    **SHARD_ALL,
    "stage3_max_live_parameters": 80_000,
    "stage3_max_reuse_distance": 80_000,
    "stage3_prefetch_bucket_size": 20_000,
}
Case = dict[str, Any]


def write_inputs(folder: Path) -> None:
    """Models and rows, once."""
    if (folder / "even.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tiny = {"hidden_size": 64, "intermediate_size": 160}
    save_tiny(folder / "tiny", "llama", tie_word_embeddings=False)
    save_tiny(folder / "llama", "llama", tie_word_embeddings=False, num_hidden_layers=4, **tiny)
    save_tiny(folder / "qwen2", "qwen2", tie_word_embeddings=True, num_hidden_layers=3, **tiny)
    save_tiny(
        folder / "llama-32m", "llama", tie_word_embeddings=False, hidden_size=512,
        intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, vocab_size=8192, max_position_embeddings=512,
    )  # fmt: skip
    save_tiny(
        folder / "qwen2-13m", "qwen2", tie_word_embeddings=True, hidden_size=384,
        intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, head_dim=64, vocab_size=8192, max_position_embeddings=512,
    )  # fmt: skip
    draw = random.Random(0)
    # each document fills a row: what libraries cache for each new shape would blur the comparison
    texts = ["".join(draw.choices("abcdefgh ", k=253)) for _ in range(400)]
    (folder / "even.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))


def case(
    folder: Path,
    name: str,
    model: str,
    method: str,
    stage: int,
    *,
    dtype: str = "fp32",
    ranks: int = 2,
    micro: int = 2,
    accumulation: int = 2,
    checkpointing: bool = False,
    zero: dict[str, Any] | None = None,
    steps: int = 3,
    share: int = 1,
) -> Case:
    """One run."""
    adapter = {"method": method, **({"r": 8} if method == "lora" else {})}
    recipe = {
        "output_dir": str(folder / "runs" / name),
        "model": {
            "name_or_path": str(folder / model),
            "dtype": dtype,
            "gradient_checkpointing": checkpointing,
        },
        "adapter": adapter,
        "data": {
            "train": [{"path": str(folder / "even.jsonl"), "format": "text"}],
            "max_length": 256,
            "cache_dir": str(folder / "cache"),
        },
        "train": {
            "gradient_accumulation_steps": accumulation,
            "per_device_train_batch_size": micro,
            "max_steps": steps,
        },
        "engine": {
            "preset": f"zero{stage}",
            "overrides": {"zero_optimization": zero or {}},
            "sequence_parallel_size": share,
        },
        "report": {"progress": "none"},
    }
    return {"name": name, "ranks": ranks, "recipe": recipe}


def traffic_cases(folder: Path) -> list[Case]:
    """Every stage, full and LoRA, 32 and 16 bits; stage 3 with and without what it may keep."""
    cases = []
    for method in ("full", "lora"):
        for stage in (0, 1, 2, 3):
            for dtype in ("fp32", "bf16"):
                zero = SHARD_ALL if stage == 3 else None
                name = f"{method}-zero{stage}-{dtype}"
                cases.append(
                    case(folder, name, "llama", method, stage, dtype=dtype, zero=zero, steps=5)
                )
        for label, zero in (("no-reuse", NO_REUSE), ("some-reuse", SOME_REUSE)):
            for recompute in (False, True):
                name = f"{method}-zero3-{label}{'-recompute' if recompute else ''}"
                again = {"checkpointing": recompute, "steps": 5}
                cases.append(case(folder, name, "llama", method, 3, zero=zero, **again))
        for stage, recompute in ((2, False), (3, True)):
            name = f"{method}-zero{stage}-shared{'-recompute' if recompute else ''}"
            again = {"checkpointing": recompute, "steps": 2, "share": 2, "dtype": "bf16"}
            zero = SHARD_ALL if stage == 3 else None
            cases.append(case(folder, name, "llama", method, stage, zero=zero, **again))
        persist = {**NO_REUSE, "stage3_param_persistence_threshold": 5000}
        for name, model, stage, zero, times in (
            (f"{method}-zero3-persistent", "llama", 3, persist, 2),
            (f"{method}-zero2-tied", "qwen2", 2, None, 3),
            (f"{method}-zero3-tied", "qwen2", 3, NO_REUSE, 1),
        ):
            cases.append(
                case(folder, name, model, method, stage, zero=zero, accumulation=times, steps=5)
            )
    return cases


def memory_cases(folder: Path) -> list[Case]:
    """Models of 126 and 58 MB in fp32, 1 and 2 ranks."""
    cases = []
    for method in ("full", "lora"):
        for stage in (0, 1, 2, 3):
            for dtype in ("fp32", "bf16"):
                zero = SHARD_ALL if stage == 3 else None
                name = f"{method}-z{stage}-{dtype}-2"
                cases.append(case(folder, name, "llama-32m", method, stage, dtype=dtype, zero=zero))
    more: list[tuple[str, str, str, int, dict[str, Any]]] = [
        ("full-z2-fp32-1", "llama-32m", "full", 2, {"ranks": 1}),
        ("lora-z2-fp32-1", "llama-32m", "lora", 2, {"ranks": 1}),
        ("full-z1-bf16-1", "llama-32m", "full", 1, {"ranks": 1, "dtype": "bf16"}),
        (
            "lora-z2-gc-1", "llama-32m", "lora", 2,
            {"ranks": 1, "micro": 4, "checkpointing": True},
        ),
        ("lora-z2-nogc-1", "llama-32m", "lora", 2, {"ranks": 1, "micro": 4}),
        ("full-z3-gc-2", "llama-32m", "full", 3, {"zero": SHARD_ALL, "checkpointing": True}),
        ("lora-z2-whole-rows-2", "llama-32m", "lora", 2, {"micro": 8}),
        ("lora-z2-shared-rows-2", "llama-32m", "lora", 2, {"micro": 8, "share": 2}),
        ("full-z2-shared-rows-2", "llama-32m", "full", 2, {"micro": 8, "share": 2}),
        (
            "lora-z2-gc-shared-rows-2", "llama-32m", "lora", 2,
            {"micro": 16, "share": 2, "checkpointing": True},
        ),
        ("qwen2-full-z2-fp32-2", "qwen2-13m", "full", 2, {"micro": 4}),
        ("qwen2-lora-z1-fp32-2", "qwen2-13m", "lora", 1, {"micro": 4}),
    ]  # fmt: skip
    cases += [
        case(folder, name, model, how, stage, **rest) for name, model, how, stage, rest in more
    ]
    return cases
