"""Tables of the loss benchmarks in Markdown, and everything measured in JSON beside them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from loss_inputs import Case
from loss_rounds import Run

MIB = 2**20
_PACKAGES = (
    "torch",
    "deepspeed",
    "trl",
    "triton",
    "liger-kernel",
    "cut-cross-entropy",
    "quack-kernels",
    "nvidia-cutlass-dsl",
)


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, its instruction sets that matter here, accelerator, versions, date."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    facts: dict[str, Any] = {
        "date": str(date.today()),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "threads": torch.get_num_threads(),
        "isa": _instruction_sets(),
        "versions": versions,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def machine_line(facts: dict[str, Any]) -> str:
    """The machine in a sentence for the head of a result."""
    where = f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, {facts['isa']}"
    if "gpu" in facts:
        where = f"{facts['gpu']}; {where}"
    installed = ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v != "not installed")
    return f"{facts['date']}; {where}; {installed}."


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    """Three digits."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def times(ratio: float | None) -> str:
    """How many times faster."""
    return "" if ratio is None else f"{ratio:.2f} x"


def mebibytes(count: int | None) -> str:
    """Empty where nothing was measured."""
    return (
        "" if count is None else f"{count / MIB:.0f}" if count >= 10 * MIB else f"{count / MIB:.1f}"
    )


def error(errors: dict[str, float], key: str) -> str:
    """Two digits; empty where there is no such gradient."""
    return f"{errors[key]:.1e}" if key in errors else ""


ERROR_COLUMNS = {
    "loss": "loss",
    "grad_hidden": "dX",
    "grad_weight_labels": "dW, labels' rows",
    "grad_weight_others": "dW, other rows",
}


def as_json(case: Case, runs: dict[str, Run]) -> dict[str, Any]:
    """A case for the JSON file."""
    return {"case": asdict(case), "runs": {name: asdict(run) for name, run in runs.items()}}


def write(output: Path, text: str, values: dict[str, Any]) -> None:
    """The Markdown, and the JSON beside it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    output.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _instruction_sets() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    flags = set(text.split())
    known = {"amx_bf16": "AMX bf16", "avx512_bf16": "AVX-512 bf16", "avx512f": "AVX-512"}
    known |= {"avx2": "AVX2", "asimd": "NEON", "sve": "SVE", "bf16": "Arm bf16"}
    found = [name for flag, name in known.items() if flag in flags]
    return ", ".join(found) or platform.machine()
