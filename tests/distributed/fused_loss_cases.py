"""What loss_worker.py computes on two ranks, and the model and rows that it computes it from.

The gradient that the optimizer was given is read back from Adam's first moment, which is
(1 - beta1) times it after one step: an update of Adam itself hides a wrong factor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distributed import scenarios

IGNORE = -100
ROWS, LENGTH = 8, 24
STAGES, MICROS = (0, 1, 2, 3), (4, 1)


def model_of(kind: str) -> Any:
    """A tiny Llama: `tied` or not; with `lora` its head is frozen."""
    from ds_train.model.tiny import tiny_model  # torch: only where the fixture runs

    return tiny_model("llama", tie_word_embeddings=kind == "tied")


def head_of(kind: str) -> str:
    """Parameter that the output layer multiplies by."""
    return "model.embed_tokens.weight" if kind == "tied" else "lm_head.weight"


def rows(masked: str) -> tuple[Tensor, Tensor]:
    """Ids and labels [8, 24] of a whole step; the second rank's may all be ignored."""
    g = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 250, (ROWS, LENGTH), generator=g)
    labels = torch.full_like(ids, IGNORE)
    keep = torch.rand((ROWS, LENGTH - 1), generator=g) < 0.6
    labels[:, :-1] = torch.where(keep, ids[:, 1:], IGNORE)
    labels[1] = IGNORE  # a micro-batch without a label, too
    if masked == "one-rank":
        labels[ROWS // 2 :] = IGNORE
    return ids, labels


def layouts(kind: str, implementation: str) -> list[tuple[int, int, str]]:
    """Stage, micro-batch size and mask of every engine; the hardest only where others are alike."""
    if kind == "lora" or implementation == "chunked":
        return [(stage, 1, "one-rank") for stage in STAGES]
    return [(s, m, masked) for s in STAGES for m in MICROS for masked in ("some", "one-rank")]


CASES = [
    (kind, implementation, *layout)
    for kind, implementation in (
        ("untied", "auto"), ("untied", "chunked"), ("tied", "auto"), ("lora", "auto")
    )
    for layout in layouts(kind, implementation)
]  # fmt: skip


def name_of(kind: str, implementation: str, stage: int, micro: int, masked: str) -> str:
    return f"{kind}-{implementation}-z{stage}-m{micro}-{masked}"


def plan(folder: Path) -> list[dict[str, Any]]:
    """What the worker does."""
    return [item(folder, *case) for case in CASES]


def item(
    folder: Path, kind: str, implementation: str, stage: int, micro: int, masked: str
) -> dict[str, Any]:
    """One engine."""
    name = name_of(kind, implementation, stage, micro, masked)
    changes = {
        "adapter.method": "lora" if kind == "lora" else "full",
        "engine.preset": f"zero{stage}",
        "train.per_device_train_batch_size": micro,
        "train.max_grad_norm": 0.0,
        "model.loss_implementation": implementation,
    }
    recipe = scenarios.recipe(folder, name, changes)
    return {"name": name, "kind": kind, "masked": masked, "micro": micro, "recipe": recipe}
