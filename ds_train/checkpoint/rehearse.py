"""The rehearsal before the first step: a checkpoint is written, read again, compared, and removed.

What would be found out hours later is found out now: a folder that can't be written to, an adapter
that comes out empty, a file system that changes what it is given, a disk that will be full.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ds_train.checkpoint.folder import complete_checkpoints
from ds_train.checkpoint.state import (
    WriteExtra,
    all_or_nothing,
    collect,
    gather_trained,
    partial_folder,
    state_path,
    write_share,
)
from ds_train.engine.engine import Engine
from ds_train.engine.piece import State
from ds_train.errors import CheckpointError, quoted
from ds_train.model.adapter import ADAPTER_WEIGHTS
from ds_train.paths import RunPaths
from ds_train.units import format_bytes, format_seconds


def rehearse_save(
    paths: RunPaths,
    engine: Engine,
    write_extra: WriteExtra | None,
    *,
    num_kept: int,
    say: Callable[[str], Any],
) -> None:
    """Write what a checkpoint would hold now, and compare it with memory. A collective call.

    Args:
        num_kept: checkpoints that the run will hold at most.

    Raises:
        CheckpointError: on every rank: it can't be written, it differs when read again, the adapter
            is empty, or the run would fill the disk.
    """
    began, ranks = time.monotonic(), engine.ranks
    final = paths.checkpoints / "rehearsal"
    folder = partial_folder(final)
    share = collect(engine)
    trained = gather_trained(engine, write_extra)
    fault = ""
    ranks.barrier()  # rank 0 may still be removing what a killed save has left

    def write() -> None:
        write_share(folder, share, trained, ranks, write_extra)

    def compare() -> None:
        nonlocal fault
        fault = _difference(state_path(folder, ranks.rank), share.tensors)
        if ranks.is_main and write_extra is not None:
            fault = fault or _adapter_fault(folder / ADAPTER_WEIGHTS, trained)

    for act in (write, compare):
        all_or_nothing(act, ranks, folder, final)
    ranks.barrier()
    num_bytes = _folder_bytes(folder) if ranks.is_main else 0
    if ranks.is_main:
        shutil.rmtree(folder, ignore_errors=True)
        fault = fault or _lack_of_room(paths, num_bytes, num_kept)
    if found := ranks.first_text(fault):
        raise CheckpointError(found)
    free = shutil.disk_usage(paths.checkpoints).free
    say(
        f"save rehearsal: {format_bytes(num_bytes)} written, read again and equal, in "
        f"{format_seconds(time.monotonic() - began)}; the run holds up to {num_kept} checkpoints "
        f"({format_bytes(num_kept * num_bytes)}; {format_bytes(free)} free)"
    )


def _difference(path: Path, tensors: State) -> str:
    """What a file says that memory does not."""
    with safe_open(str(path), framework="pt") as file:
        if missing := set(tensors).symmetric_difference(file.keys()):
            return (
                f"save rehearsal: {quoted(path)} has other tensors than the run ({min(missing)})."
            )
        for key, tensor in tensors.items():
            if not _same_bits(file.get_tensor(key), tensor.float().cpu()):
                return (
                    f"save rehearsal: {key} reads back from {quoted(path.parent)} with other "
                    "values than were written. That file system can't be trusted; choose another "
                    "output_dir."
                )
    return ""


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """NaN equals itself here: whether it may be there is not this file's question."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*flat)


def _adapter_fault(path: Path, trained: State) -> str:
    """Whether the adapter file is empty, or holds less than what trains."""
    with safe_open(str(path), framework="pt") as file:
        found = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    wanted = sum(tensor.numel() for tensor in trained.values())
    if found >= wanted > 0:
        return ""
    return (
        f"save rehearsal: {path.name} would hold {found:,} numbers of {wanted:,} that train; an "
        "adapter in which some are missing is of no use. This is a defect, of ds-train or of peft."
    )


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _lack_of_room(paths: RunPaths, num_bytes: int, num_kept: int) -> str:
    """Whether the checkpoints to come don't fit; one is written before an older one goes."""
    to_come = max(0, num_kept - len(complete_checkpoints(paths))) + 1
    free = shutil.disk_usage(paths.checkpoints).free
    if to_come * num_bytes <= free:
        return ""
    return (
        f"output_dir = {quoted(paths.root)}: a checkpoint of this run takes "
        f"{format_bytes(num_bytes)}, and {to_come} more at once, "
        f"{format_bytes(to_come * num_bytes)}, do not fit into the {format_bytes(free)} that are "
        "free there. Make room, lower "
        "checkpoint.keep, set checkpoint.best = false, or choose another output_dir."
    )
