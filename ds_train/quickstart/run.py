"""`ds-train quickstart`: the main job of the toolkit from nothing to a merged model, no download.

    write files -> pretrain a base -> export it -> score -> LoRA -> export merged -> score -> table

Every step is the command that a user would type, run as its own process and printed first.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ds_train.errors import ConfigError, RunFailed
from ds_train.paths import RunPaths
from ds_train.plan.presets import ds_configs_dir
from ds_train.quickstart.files import QuickstartFiles, write_files
from ds_train.quickstart.score import Score, score_model
from ds_train.report.record import EvaluationRecord, StepRecord, read_records
from ds_train.units import format_bytes, format_seconds

MARKER = "quickstart.txt"
"""Stands in a folder that the quickstart made and may make anew."""


@dataclass(frozen=True)
class RunSummary:
    """What the records of one run say."""

    num_steps: int
    loss_before: float | None
    loss_after: float
    tokens_per_second: float
    peak_memory_bytes: int


def quickstart(output_dir: Path, *, num_processes: int | None = None) -> None:
    """Run everything. RunFailed where a step fails, ConfigError where the folder is taken."""
    began = time.monotonic()
    claim_folder(output_dir)
    processes = num_processes or _num_processes()
    print("Writing an invented language, its stories and a task", flush=True)
    files = write_files(output_dir / "files")
    pretrain, base = output_dir / "pretrain", output_dir / "base"
    lora, merged = output_dir / "lora", output_dir / "merged"

    print("\nPretraining a tiny base model from random weights", flush=True)
    _ds_train("train", str(_recipe("pretrain")), *pretrain_overrides(files, pretrain, processes))
    _ds_train("export", str(pretrain), "--output", str(base))
    print("\nFine-tuning it with LoRA under ZeRO-2 on a task that no story contains", flush=True)
    _ds_train("train", str(_recipe("lora")), *lora_overrides(files, base, lora, processes))
    _ds_train("export", str(lora), "--merge", "--output", str(merged))
    print("\nAsking both models, loaded with plain transformers, about words never trained on")
    before, after = (score_model(folder, files.test) for folder in (base, merged))
    print(table(summarize(pretrain), summarize(lora), before, after))
    print(f"everything lies in {output_dir} ({format_seconds(time.monotonic() - began)} in all):")
    print(_places(output_dir))


def claim_folder(folder: Path) -> None:
    """Make the folder, or empty it where an earlier quickstart made it; refuse anything else."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise ConfigError(
                f"--output-dir = {folder}: is not empty and no quickstart made it; "
                "name another folder."
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("Made by ds-train quickstart, which may delete it.\n")


def _num_processes() -> int:
    """One for each GPU (1, 2, 4 or 8, so that the batch divides), two without any."""
    num_gpus = torch.cuda.device_count()
    return 1 << (min(num_gpus, 8).bit_length() - 1) if num_gpus else 2


def _recipe(name: str) -> Path:
    return ds_configs_dir() / "recipes" / f"quickstart_{name}.yaml"


def pretrain_overrides(files: QuickstartFiles, run: Path, processes: int) -> list[str]:
    """Settings laid over the recipe: this folder, this number of processes, the same batch."""
    return [
        f"output_dir={run}",
        f"model.name_or_path={files.architecture}",
        f"data.train.0.path={files.stories}",
        f"train.per_device_train_batch_size={16 // processes}",
        f"cluster.processes_per_node={processes}",
    ]


def lora_overrides(files: QuickstartFiles, base: Path, run: Path, processes: int) -> list[str]:
    """Settings laid over the recipe: this folder, this number of processes, the same batch."""
    return [
        f"output_dir={run}",
        f"model.name_or_path={base}",
        f"data.train.0.path={files.train}",
        f"data.validation.sources.0.path={files.test}",
        f"train.per_device_train_batch_size={8 // processes}",
        f"cluster.processes_per_node={processes}",
    ]


def _ds_train(*arguments: str) -> None:
    """Run one command of ds-train as its own process, after printing it."""
    print(f"$ {shlex.join(['ds-train', *arguments])}", flush=True)
    command = [sys.executable, "-m", "ds_train", *arguments]
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise RunFailed(f"quickstart: ds-train {arguments[0]} ended with exit code {code}.")


def summarize(run: Path) -> RunSummary:
    """Loss before and after, speed and memory from a run's metrics.jsonl."""
    records = read_records(RunPaths(run).metrics)
    steps = [record for record in records if isinstance(record, StepRecord)]
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    before = next((record.loss for record in evaluations if record.step == 0), None)
    later = steps[1:]  # the first step pays for warm-up
    return RunSummary(
        num_steps=len(steps),
        loss_before=before,
        loss_after=evaluations[-1].loss,
        tokens_per_second=sum(r.tokens for r in later) / sum(r.seconds for r in later),
        peak_memory_bytes=max(record.peak_memory_bytes for record in steps),
    )


def table(pretrain: RunSummary, lora: RunSummary, before: Score, after: Score) -> str:
    """What came out, for people."""
    assert lora.loss_before is not None
    rows = [
        ("task, held-out words", "base", "base + LoRA, merged"),
        ("loss", f"{lora.loss_before:.3f}", f"{lora.loss_after:.3f}"),
        ("answers right", f"{before.accuracy:.1%}", f"{after.accuracy:.1%}"),
        ("", "", ""),
        ("training", "pretraining", "LoRA"),
        ("steps", f"{pretrain.num_steps:,}", f"{lora.num_steps:,}"),
        ("tokens per second", *(f"{run.tokens_per_second:,.0f}" for run in (pretrain, lora))),
        (
            "peak memory per process",
            *(format_bytes(run.peak_memory_bytes) for run in (pretrain, lora)),
        ),
    ]
    lines = [f"{name:<26}{left:>14}{right:>22}".rstrip() for name, left, right in rows]
    return "\n".join(["", *lines, "", *_examples(before, after)])


def _examples(before: Score, after: Score) -> list[str]:
    lines: list[str] = []
    for (prompt, right, old), (_, _, new) in zip(before.examples, after.examples, strict=True):
        lines += [prompt, f"  base   {old}", f"  LoRA   {new}", f"  right  {right}"]
    return [*lines, ""]


def _places(folder: Path) -> str:
    places = [
        ("files", "stories, task items, tokenizer and architecture"),
        ("pretrain", "run of the base model: recipe, records, checkpoints"),
        ("base", "the base model, a Hugging Face folder"),
        ("lora", "run of the fine-tuning: recipe, records, checkpoints, adapter"),
        ("merged", "base and adapter as one Hugging Face folder"),
    ]
    return "\n".join(f"  {folder / name!s:<28} {what}" for name, what in places)
