"""The toolkit on one GPU: every stage, dtype and offload with the same losses, and the quickstart.

Trains the tests' tiny model in one process on the device that is there and compares each layout
with ZeRO-0 of its dtype; then runs the quickstart. Prints Markdown; with an argument, writes it
there. Without a GPU it runs on the CPU and says so.

usage: bash benchmarks/gpu.sh train [RESULT.md]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "tests"))

from distributed import scenarios  # noqa: E402 (the tests' trainings)
from distributed.conftest import launch  # noqa: E402

LAYOUTS = ("zero0", "zero1", "zero2", "zero3", "zero2_offload_cpu", "zero3_offload_cpu")


def plan(folder: Path) -> list[dict[str, Any]]:
    """LoRA and full fine-tuning in three dtypes on every layout, and with checkpointing."""
    items = []
    for family, changes in scenarios.FAMILIES.items():
        for dtype in ("fp32", "bf16", "fp16"):
            for preset in LAYOUTS:
                keys = {**changes, "model.dtype": dtype, "engine.preset": preset}
                items.append(scenarios.scenario(folder, f"{family}|{dtype}|{preset}", keys))
            keys = {**changes, "model.dtype": dtype, "model.gradient_checkpointing": True}
            items.append(scenarios.scenario(folder, f"{family}|{dtype}|checkpointing", keys))
    return items


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row a layout: its last loss, and the largest relative difference to ZeRO-0."""
    lines = ["| trains | dtype | layout | last loss | largest difference to zero0 |"]
    lines.append("|---|---|---|---|---|")
    for name, result in results.items():
        family, dtype, layout = name.split("|")
        if "error" in result:
            lines.append(f"| {family} | {dtype} | {layout} | {result['error'][:80]} | |")
            continue
        truth = results[f"{family}|{dtype}|zero0"].get("losses", [])
        pairs = zip(result["losses"], truth, strict=True) if truth else []
        worst = max((abs(a - b) / b for a, b in pairs), default=float("nan"))
        last = result["losses"][-1]
        lines.append(f"| {family} | {dtype} | {layout} | {last:.5f} | {worst:.1e} |")
    return "\n".join(lines)


def quickstart(folder: Path) -> str:
    """The end of what the quickstart prints."""
    command = [sys.executable, "-m", "ds_train", "quickstart", "--output-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("task, held-out")), -20)
    return "\n".join(lines[start : start + 8] if start >= 0 else lines[start:])


def main() -> None:
    """Run everything and print it."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, no GPU found"
    began = time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenarios.write_inputs(folder)
        accelerator = None if torch.cuda.is_available() else "cpu"
        items = plan(folder)
        results = launch(folder, "gpu", items, 1, timeout_seconds=500, accelerator=accelerator)
        layouts = table(results)
        asked = quickstart(folder / "quickstart")
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "deepspeed", "transformers"))
    text = (
        f"# One device: {device}\n\n{date.today()}, {versions}, {time.time() - began:.0f} s.\n\n"
        f"{layouts}\n\n```\n{asked}\n```\n"
    )
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)


if __name__ == "__main__":
    main()
