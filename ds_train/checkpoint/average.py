"""The average of a run's last checkpoints as one model: `ds-train export RUN --average ...`.

Averaging takes the place of (part of) the learning-rate decay: what comes last in a curriculum is
then learned at a rate that is still high. Luo et al., "How Learning Rate Decay Wastes Your Best
Data in Curriculum-Based LLM Pretraining" (arXiv 2511.18903), call it CMA with a constant rate and
CDMA with a moderate end ratio (`train.min_lr_ratio`, about 1/3 there), and average 6 checkpoints.

    last:n     M = (T_1 + ... + T_n) / n
    ema:a[:n]  M_1 = T_1,  M_k = a T_k + (1 - a) M_(k-1),  M = M_n

T_1 is the oldest of the n checkpoints, so `a` is the weight of the newest one and the oldest keeps
(1 - a)^(n-1). That recurrence is the usual one (Li et al., arXiv 2505.12082, write it for merging
checkpoints); 0.2 is the value of Luo et al.

What is averaged is each checkpoint's model, not its adapter: the mean of W + s B_i A_i is not
W + s mean(B) mean(A), since a product of means leaves out how B and A change together, and B and A
could be scaled against each other without any change of the model. So an adapter is merged first.

Tensor by tensor, in fp32: the memory of two or three tensors, whatever the size of the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ds_train.checkpoint.folder import complete_checkpoints, find_checkpoint
from ds_train.checkpoint.layout import Layout
from ds_train.errors import CheckpointError, quoted
from ds_train.paths import RunPaths

_SYNTAX = (
    "write last:6 (mean of the last 6 checkpoints), ema:0.2 (moving average, 0.2 for the newest) "
    "or ema:0.2:6."
)


@dataclass(frozen=True)
class Average:
    """Which checkpoints are averaged, with which weights."""

    text: str
    """As it was typed."""
    count: int | None
    """How many of the last ones; None for all that the run keeps."""
    alpha: float | None = None
    """Weight of the newest one in each step of the EMA; None for the plain mean."""

    def weights(self, count: int) -> list[float]:
        """Weights of `count` checkpoints, oldest first; they sum to 1."""
        if self.alpha is None:
            return [1 / count] * count
        found = [(1 - self.alpha) ** (count - 1)]
        return found + [self.alpha * (1 - self.alpha) ** (count - 1 - k) for k in range(1, count)]


def parse_average(text: str) -> Average:
    """`last:6`, `ema:0.2` or `ema:0.2:6`.

    Raises:
        CheckpointError: it is none of these.
    """
    match = re.fullmatch(r"last:(?P<count>[0-9]+)|ema:(?P<alpha>[^:]+)(:(?P<of>[0-9]+))?", text)
    if match is None:
        raise CheckpointError(f"--average {text}: {_SYNTAX}")
    count = match["count"] or match["of"]
    if count is not None and int(count) < 2:
        raise CheckpointError(f"--average {text}: it takes at least 2 checkpoints to average.")
    alpha = None
    if match["alpha"] is not None:
        try:
            alpha = float(match["alpha"])
        except ValueError:
            raise CheckpointError(f"--average {text}: {_SYNTAX}") from None
        if not 0 < alpha < 1:
            raise CheckpointError(
                f"--average {text}: the weight of the newest checkpoint must lie between 0 and 1, "
                "e.g. ema:0.2."
            )
    return Average(text, None if count is None else int(count), alpha)


def averaged_checkpoints(run: Path, average: Average, keep: int) -> list[Path]:
    """Folders of the checkpoints to average, oldest first.

    `keep` is the recipe's checkpoint.keep: the best checkpoint may be kept beside the last ones,
    and is not one of them.

    Raises:
        CheckpointError: no run, or it has fewer checkpoints than asked for.
    """
    find_checkpoint(run)  # says it where there is no run, or no checkpoint at all
    folders = complete_checkpoints(RunPaths(run))[-keep:]
    wanted = average.count or max(len(folders), 2)
    if len(folders) < wanted:
        names = ", ".join(folder.name for folder in folders)
        raise CheckpointError(
            f"--average {average.text}: {quoted(run)} keeps {len(folders)} of its last checkpoints "
            f"({names}), and {wanted} are wanted. checkpoint.keep = {keep} and checkpoint.every "
            "say how many there are: ask for fewer, or train with others."
        )
    return folders[-wanted:]


def average_layouts(layouts: Sequence[Layout], weights: Sequence[float]) -> Layout:
    """The files of the first layout, each tensor the weighted sum over all layouts, in fp32.

    A tensor that is the same everywhere (frozen weights) stays the same to the bit.

    Raises:
        CheckpointError: the checkpoints do not have the same tensors.
    """
    first, *others = layouts
    if any(other.files != first.files or other.untied != first.untied for other in others):
        raise CheckpointError(
            "--average: the checkpoints do not have the same tensors (in some of them the tied "
            "embedding and output layer have parted, in others not); average later ones only."
        )

    def make(key: str) -> Tensor:
        start = first.make(key)
        if not start.is_floating_point():
            return start
        # T_1 + sum of w_i (T_i - T_1): what did not change adds nothing, not even a rounding
        start = start.to(torch.promote_types(start.dtype, torch.float32))
        total = start.clone()
        for layout, weight in zip(others, weights[1:], strict=True):
            other = layout.make(key).to(start.dtype)
            if not torch.equal(other, start):
                total.add_(other - start, alpha=weight)
        return total

    return Layout(first.files, make, first.untied)
