"""Where everything of a run lies: one class that names the files, so that no other file does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def default_cache_dir() -> Path:
    """Folder of tokenised data: $DS_TRAIN_CACHE, or ds-train in the user's cache folder."""
    if chosen := os.environ.get("DS_TRAIN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ds-train"


def replace_text(path: Path, text: str) -> None:
    """Write a small file in one move: a reader, or a power cut, meets the old or the new one."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class RunPaths:
    """The files of one run folder."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe, complete."""
        return self.root / "recipe.yaml"

    @property
    def ds_config(self) -> Path:
        """The resolved DeepSpeed config, complete."""
        return self.root / "ds_config.json"

    @property
    def audit(self) -> Path:
        """What became of every source's rows."""
        return self.root / "data_audit.json"

    @property
    def subset(self) -> Path:
        """The examples that fewshot.subset has chosen: ids, rows, and their hash."""
        return self.root / "subset.json"

    @property
    def run_facts(self) -> Path:
        """Fingerprints of base model and data, versions of packages."""
        return self.root / "run.json"

    @property
    def curriculum(self) -> Path:
        """What a curriculum or a mixture has shown the model, written at the end."""
        return self.root / "curriculum.json"

    @property
    def difficulty(self) -> Path:
        """Folder of the difficulties that the model in training has measured."""
        return self.root / "difficulty"

    @property
    def metrics(self) -> Path:
        """One JSON record per step and per evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def quarantine(self) -> Path:
        """Steps that diverged, and their samples, which are left out since."""
        return self.root / "quarantine.json"

    @property
    def stop(self) -> Path:
        """Made to ask the run to save and end after its step; the run removes it."""
        return self.root / "stop"

    @property
    def ranks(self) -> Path:
        """Folder of what each rank was last known to do; gone after a run that ended well."""
        return self.root / "ranks"

    @property
    def hang(self) -> Path:
        """Folder of the ranks' stacks, a folder for each time that the run hung."""
        return self.root / "hang"

    @property
    def restarts(self) -> Path:
        """One JSON line for each time that `ds-train train` started the run again."""
        return self.root / "restarts.jsonl"

    @property
    def failures(self) -> Path:
        """One JSON line for each failure after which `ds-train train` gave up."""
        return self.root / "failures.jsonl"

    @property
    def undone(self) -> Path:
        """Records of steps that were made and then undone, as the run went on from before them."""
        return self.root / "undone.jsonl"

    @property
    def report(self) -> Path:
        """What `ds-train report` writes."""
        return self.root / "report.md"

    @property
    def loss_curve(self) -> Path:
        """The picture of the report."""
        return self.root / "loss.png"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint made after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"
