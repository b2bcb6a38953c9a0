"""Proof that the weights that will be trained are those in the files.

A loader can leave parameters at random values with no more than a log line (seen with ZeRO-3).
After loading, the norm of every tensor is compared with its norm in the safetensors files; each
rank reads its share of them. Tensors that transformers renames or fuses while it loads (experts)
have no counterpart of their name in the files; they are named as not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ds_train.errors import ModelError

RELATIVE_TOLERANCE = 0.02
"""Rounding fp32 files to bf16 moves a norm by less than 0.4 %."""


def check_integrity(
    model: nn.Module,
    files: list[Path],
    *,
    rank: int,
    world_size: int,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> str:
    """Compare the norm of each parameter with that in `files`; one sentence about the result.

    Args:
        sum_over_ranks: returns the elementwise sum of a fp64 vector over all ranks.

    Raises:
        ModelError: a norm differs; its tensors are named.
    """
    parameters = dict(model.named_parameters())
    places = _match_names(model, files)
    names = sorted(name for name in parameters if name in places)
    loaded = torch.zeros(len(names), dtype=torch.float64)
    stored = torch.zeros(len(names), dtype=torch.float64)
    for index, name in enumerate(names):
        mine = index % world_size == rank
        parameter = parameters[name]
        if hasattr(parameter, "ds_tensor"):
            loaded[index] = _square_sum(_local_part(parameter, rank))
        elif mine:
            loaded[index] = _square_sum(parameter.detach())
        if mine:
            path, key = places[name]
            with safe_open(str(path), framework="pt") as file:
                stored[index] = _square_sum(file.get_tensor(key))
    loaded, stored = sum_over_ranks(loaded).sqrt(), sum_over_ranks(stored).sqrt()
    wrong = ((loaded - stored).abs() > RELATIVE_TOLERANCE * stored + 1e-12).nonzero().flatten()
    if len(wrong):
        shown = ", ".join(
            f"{names[i]} ({loaded[i]:.4g}, in the file {stored[i]:.4g})" for i in wrong[:5]
        )
        raise ModelError(
            f"{len(wrong)} of {len(names)} tensors were not loaded as they stand in the files "
            f"(norms): {shown}. Training would start from wrong weights, so it does not start."
        )
    renamed = sorted(set(parameters) - set(names))
    note = f"; not compared, as they have other names there: {', '.join(renamed[:3])}"
    return (
        f"weights: the norms of {len(names)} of {len(parameters)} tensors equal the files'"
        f"{note if renamed else ''}"
    )


def _match_names(model: nn.Module, files: list[Path]) -> dict[str, tuple[Path, str]]:
    """Parameter name -> file and key; a base model's files lack the prefix of its backbone."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    places = {}
    for path in files:
        with safe_open(str(path), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                places[key] = (path, key)
                places.setdefault(prefix + key, (path, key))
    return places


def _local_part(parameter: Any, rank: int) -> Tensor:
    """This rank's shard of a ZeRO-3 parameter, without the padding at the end of the last one."""
    shard = parameter.ds_tensor.detach().flatten()
    left = parameter.ds_numel - rank * shard.numel()
    return shard[: max(min(shard.numel(), left), 0)]


def _square_sum(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros((), dtype=torch.float64)
    return torch.linalg.vector_norm(tensor.float(), dtype=torch.float64).cpu() ** 2
