"""Reading checkpoints: which there are, and what each belongs to.

Knows files only, no engine, so that export, evaluation and generation work from a run folder on
any machine. What lies in their state files is in `pieces.py`, writing and resuming in `state.py`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ds_train.errors import CheckpointError, quoted
from ds_train.paths import RunPaths

FACTS = "checkpoint.json"
_NUM_ALWAYS = 9
"""Facts that every checkpoint.json has."""


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint belongs to and where the run stood."""

    step: int
    """Optimizer steps made."""
    num_updates: int
    """Of these, the ones that changed the weights (fp16 may skip some)."""
    total_tokens: int
    best_loss: float | None
    """Lowest validation loss so far."""
    base_fingerprint: str
    data_fingerprint: str
    difficulty_fingerprint: str = ""
    """Of the curriculum's metric and values; empty without a curriculum."""
    loss_scale: dict[str, float] = field(default_factory=dict)
    state_files: list[str] = field(default_factory=list)
    evaluated_step: int | None = None
    """Steps made before the last evaluation; None of old checkpoints, which do not know it."""
    best_value: float | None = None
    """Best value so far of the metric of train.early_stopping, where that is not the loss."""
    improved_value: float | None = None
    """Its value at the last improvement that counted."""
    num_not_better: int = 0
    """Evaluations since then."""
    ended_early: bool = False
    """The run is complete, before the length that its recipe gives."""
    joined_at: list[int] = field(default_factory=list)
    """Gradual unfreezing: updates made when stage 1, 2, ... joined."""
    refreshed: list[str] = field(default_factory=list)
    """Fingerprints of the difficulties measured during the run (curriculum.refresh_at)."""
    recent_losses: list[float] = field(default_factory=list)
    """Of the last steps, where train.rollback.spike compares with them."""

    def to_json(self) -> str:
        """As checkpoint.json; what a run has no use for is left out."""
        usual = asdict(CheckpointFacts(0, 0, 0, None, "", ""))
        always = {one.name for one in fields(self)[:_NUM_ALWAYS]}
        values = {k: v for k, v in asdict(self).items() if k in always or v != usual[k]}
        return json.dumps(values, indent=1) + "\n"


def complete_checkpoints(paths: RunPaths) -> list[Path]:
    """Folders of all complete checkpoints, oldest first."""
    return sorted(facts.parent for facts in paths.checkpoints.glob(f"step-*/{FACTS}"))


def pointed_at(pointer: Path) -> Path | None:
    """The checkpoint folder that `latest` or `best` names, or None."""
    if not pointer.is_file():
        return None
    folder = pointer.parent / pointer.read_text().strip()
    return folder if (folder / FACTS).is_file() else None


def latest_checkpoint(paths: RunPaths) -> Path | None:
    """The newest complete checkpoint, or None."""
    folders = complete_checkpoints(paths)
    return folders[-1] if folders else None


def read_facts(folder: Path) -> CheckpointFacts:
    """What a checkpoint belongs to.

    Raises:
        CheckpointError: it is not a complete checkpoint of ours.
    """
    try:
        return CheckpointFacts(**json.loads((folder / FACTS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{quoted(folder)} is not a complete checkpoint: {error}") from None


def chosen_checkpoint(paths: RunPaths) -> Path | None:
    """What a run came to: its best checkpoint under train.early_stopping, else the latest one."""
    latest = latest_checkpoint(paths)
    if latest is None or read_facts(latest).improved_value is None:
        return latest
    return pointed_at(paths.checkpoints / "best") or latest


def find_checkpoint(run: Path, which: str = "chosen") -> Path:
    """Folder of the checkpoint `latest`, `best`, `step-50` (or `50`, `step-00000050`) of a run, or
    of the `chosen` one: the best under early stopping, else the latest.

    Raises:
        CheckpointError: it is no run folder, or it has no such complete checkpoint.
    """
    paths = RunPaths(run)
    if not paths.recipe.is_file():
        raise CheckpointError(
            f"{quoted(run)} is not a run folder: it has no {paths.recipe.name}. Give the "
            "output_dir of a run."
        )
    folders = complete_checkpoints(paths)
    if not folders:
        raise CheckpointError(
            f"{quoted(run)} has no complete checkpoint yet. Start `ds-train train` with its "
            "recipe; checkpoint.every says how often one is made."
        )
    if which == "chosen":
        return chosen_checkpoint(paths) or folders[-1]
    if which == "latest":
        return folders[-1]
    if which == "best":
        best = pointed_at(paths.checkpoints / "best")
        if best is None:
            raise CheckpointError(
                f"{quoted(run)} has no best checkpoint: no validation loss was measured, or none "
                "was lower than at the start. Use --checkpoint latest, or look at metrics.jsonl."
            )
        return best
    number = which.removeprefix("step-")
    step = int(number) if number.isdecimal() else -1
    for folder in folders:
        if folder == paths.checkpoint(step):
            return folder
    names = ", ".join(folder.name for folder in folders)
    raise CheckpointError(
        f"--checkpoint {which}: {quoted(run)} has no such complete checkpoint; it has latest, "
        f"{names}."
    )
