"""Checkpoints that resume on any number of ranks and at any ZeRO stage.

A checkpoint is a folder with the fp32 weights and optimizer tensors of what trains, under the names
of their parameters. Each rank writes what it holds, so nothing is sent; at stage 0, where all hold
everything, parameters are dealt over them by size:

    step-00000050/
      state/rank-00000.safetensors   "<parameter>|param", ..., or parts of them: see `pieces.py`
      adapter_config.json, adapter_model.safetensors      for PEFT methods; plain PEFT reads them
      checkpoint.json                what it belongs to; its presence says that all is there
      SHA256SUMS                     checksums of these, read back from the disk

It is written under another name, and renamed when complete: a kill at any moment leaves the
folder `latest` points to as it was. DeepSpeed's own format is not used because it is tied to the
ZeRO stage and the number of ranks (its universal converter does not cross from ZeRO-2 to 3).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from ds_train.checkpoint.checksums import checksummed_files, digest, write_checksums
from ds_train.checkpoint.folder import (
    FACTS,
    CheckpointFacts,
    complete_checkpoints,
    pointed_at,
)
from ds_train.checkpoint.pieces import Share, StateFiles, save_share
from ds_train.engine.engine import Engine
from ds_train.engine.piece import State
from ds_train.engine.ranks import Ranks
from ds_train.errors import CheckpointError, quoted
from ds_train.launch.marks import tick
from ds_train.paths import RunPaths, replace_text, sync_folder
from ds_train.units import format_bytes

WriteExtra = Callable[[Path, State], None]
"""Writes files beside the state, from a folder and {parameter name: fp32 tensor}."""
PARTIAL = ".partial-"
"""Begins the name of a folder that is no checkpoint yet, or no longer."""


def save_checkpoint(
    paths: RunPaths,
    engine: Engine,
    facts: CheckpointFacts,
    write_extra: WriteExtra | None = None,
) -> Path:
    """Write the checkpoint of `facts.step`. A collective call; every rank returns its folder.

    Args:
        write_extra: called on rank 0 with (folder, {parameter name: fp32 tensor}) for files
            beside the state, such as the adapter in PEFT's format; None for none.

    Raises:
        CheckpointError: on every rank, if one could not write; older checkpoints are untouched.
    """
    ranks = engine.ranks
    final = paths.checkpoint(facts.step)
    partial = partial_folder(final)
    share = collect(engine)
    share.on_write = tick  # a large share on a slow disk is no hang
    trained = gather_trained(engine, write_extra)
    written: dict[str, str] = {}

    def write() -> None:
        write_share(partial, share, trained, ranks, write_extra)
        written[share_of(ranks.rank)] = digest(state_path(partial, ranks.rank))

    def finish() -> None:
        if ranks.is_main:
            finish_checkpoint(partial, final, facts, digests)

    all_or_nothing(write, ranks, partial, final)
    found = [json.loads(text) for text in ranks.texts(json.dumps(written))]
    digests = {name: one for share in found for name, one in share.items()}
    all_or_nothing(finish, ranks, partial, final)
    return final


def finish_checkpoint(
    partial: Path, final: Path, facts: CheckpointFacts, digests: dict[str, str]
) -> None:
    """Rank 0, when every share is on disk: what is missing beside them, then its own name.

    Args:
        digests: path inside the folder -> SHA-256, of every rank's share.
    """
    files = sorted(Path(name).name for name in digests)
    replace_text(partial / FACTS, replace(facts, state_files=files).to_json())
    others = {name: digest(partial / name) for name in checksummed_files(partial)}
    write_checksums(partial, digests | others)
    _publish(partial, final)


def partial_folder(final: Path) -> Path:
    """Where a checkpoint lies until it is complete."""
    return final.with_name(PARTIAL + final.name)


def write_share(
    folder: Path,
    share: Share,
    trained: State,
    ranks: Ranks,
    write_extra: WriteExtra | None,
) -> None:
    """This rank's file of a checkpoint, and on rank 0 what lies beside them all."""
    path = state_path(folder, ranks.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_share(path, share)
    if ranks.is_main and write_extra is not None:
        write_extra(folder, trained)


def state_path(folder: Path, rank: int) -> Path:
    """Where a rank's file lies."""
    return folder / share_of(rank)


def share_of(rank: int) -> str:
    """Path of a rank's file inside a checkpoint's folder."""
    return f"state/rank-{rank:05d}.safetensors"


def all_or_nothing(act: Callable[[], None], ranks: Ranks, partial: Path, final: Path) -> None:
    """Write; if one rank could not, all of them give up together and leave no half of it."""
    failure = ""
    try:
        act()
    except (OSError, SafetensorError) as error:
        failure = f"rank {ranks.rank}: {error}"
    if reason := ranks.first_text(failure):
        if ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(write_failure(final, reason))


def collect(engine: Engine) -> Share:
    """This rank's share of the state: views of the optimizer's memory, copies of what is on NVMe.

    No collective. The views are good until the next update.
    """
    ranks, states = engine.ranks, engine.states
    stay_in_place = states.stay_in_place
    share, load = Share(), [0] * ranks.world_size
    for piece in states.pieces():
        if not states.are_shared_out:
            owner = load.index(min(load))
            load[owner] += sum(tensor.numel() for tensor in piece.tensors.values())
            if owner != ranks.rank:
                continue
        share.add(piece if stay_in_place else piece.copy())
    return share


def gather_trained(engine: Engine, write_extra: WriteExtra | None) -> State:
    """What `write_extra` is given: name -> fp32 weight of all that trains, on rank 0.

    A collective call. Empty on other ranks, and everywhere where there is nothing more to write.
    """
    trained: State = {}
    if write_extra is None:
        return trained
    for name, weight in engine.states.whole_params():
        if engine.ranks.is_main:
            trained[name] = weight
    return trained


def write_failure(folder: Path, reason: str) -> str:
    """What is said when a checkpoint could not be written."""
    free = format_bytes(shutil.disk_usage(_existing(folder)).free)
    return (
        f"checkpoint {folder.name} could not be written to {quoted(folder.parent)}: {reason} "
        f"({free} free there). The previous checkpoint is whole; make room or choose another "
        "output_dir, then start the same command again to go on from it."
    )


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _publish(partial: Path, final: Path) -> None:
    sync_folder(partial / "state")
    if final.exists():  # of an earlier attempt at the same step
        _remove(final)
    partial.rename(final)
    sync_folder(final.parent)
    point_to(final.parent / "latest", final.name)


def point_to(pointer: Path, name: str) -> None:
    """Make the text file `pointer` name a checkpoint: `best`, and `latest` for people."""
    replace_text(pointer, name + "\n")


def prune(paths: RunPaths, keep: int) -> None:
    """Remove all but the `keep` latest checkpoints and the one that `best` names."""
    best = pointed_at(paths.checkpoints / "best")
    for folder in complete_checkpoints(paths)[:-keep]:
        if best is None or folder.name != best.name:
            _remove(folder)


def _remove(folder: Path) -> None:
    """First it is no checkpoint any more, then its files go; what can't go now goes next time."""
    gone = folder.with_name(f"{PARTIAL}old-{folder.name}")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_partial(paths: RunPaths) -> None:
    """Remove what a killed save left behind."""
    for folder in paths.checkpoints.glob(f"{PARTIAL}*"):
        shutil.rmtree(folder, ignore_errors=True)


def load_checkpoint(folder: Path, engine: Engine, facts: CheckpointFacts) -> None:
    """Put the saved weights and optimizer tensors back, whatever layout they were saved on.

    Raises:
        CheckpointError: a file is missing or damaged, or a parameter has no saved state.
    """
    saved = StateFiles(folder, facts)
    states = engine.states
    shapes = {name: states.shape(parameter) for name, parameter in states.trainable()}
    absent = [name for name in shapes if name not in saved.names]
    if absent or len(saved.names) != len(shapes):
        surplus = sorted(saved.names - set(shapes))
        raise CheckpointError(
            f"{quoted(folder)} does not belong to this recipe: {len(absent)} of {len(shapes)} "
            f"trained parameters are not in it ({', '.join(absent[:3]) or 'none'}), and it has "
            f"{len(surplus)} others ({', '.join(surplus[:3]) or 'none'})."
        )
    for name, shape in shapes.items():
        if saved.shape(name) != shape:
            raise CheckpointError(
                f"{quoted(folder)} does not belong to this recipe: its {name} has the shape "
                f"{saved.shape(name)}, and the run's has {shape}."
            )
    engine.write_states(saved, facts.num_updates)
    engine.loss_scale = facts.loss_scale
