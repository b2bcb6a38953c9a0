"""The toolkit on one GPU: every stage, dtype and offload with the same losses, and the quickstart.

Trains the tests' tiny model in one process on the device that is there and compares each layout
with ZeRO-0 of its dtype; then runs the quickstart. Prints Markdown and writes it, with JSON beside
it, after the trainings and again at the end. Without a GPU it runs on the CPU and says so. Ends
with 1 where a training failed or time ran out.

usage: bash benchmarks/gpu.sh train [--output RESULT.md] [--quick] [--time-limit SECONDS]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from loss_report import machine, machine_line, write

from ds_train.launch.command import deepspeed_program, free_port
from ds_train.launch.process import remove_shared_memory

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "tests"))

from distributed import scenarios  # noqa: E402 (the tests' trainings)

WORKER = REPO / "tests" / "distributed" / "worker.py"
LAYOUTS = ("zero0", "zero1", "zero2", "zero3", "zero2_offload_cpu", "zero3_offload_cpu")
DTYPES = ("fp32", "bf16", "fp16")
OUT_OF_TIME = "out of time"
QUICK_LAYOUTS, QUICK_DTYPES = ("zero0", "zero3"), ("fp32",)
Results = dict[str, dict[str, Any]]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file; JSON is written beside it")
    parser.add_argument("--quick", action="store_true", help="few trainings: does it all run?")
    parser.add_argument("--time-limit", type=float, default=560, help="seconds for everything")
    return parser.parse_args()


def plan(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """LoRA and full fine-tuning in three dtypes on every layout, and with checkpointing."""
    items = []
    for family, changes in scenarios.FAMILIES.items():
        for dtype in QUICK_DTYPES if quick else DTYPES:
            for preset in QUICK_LAYOUTS if quick else LAYOUTS:
                keys = {**changes, "model.dtype": dtype, "engine.preset": preset}
                items.append(scenarios.scenario(folder, f"{family}|{dtype}|{preset}", keys))
            keys = {**changes, "model.dtype": dtype, "model.gradient_checkpointing": True}
            items.append(scenarios.scenario(folder, f"{family}|{dtype}|checkpointing", keys))
    return items


def train_all(folder: Path, items: list[dict[str, Any]], until: float) -> Results:
    """Results by name, of all in one process; after a defect, which ends it, another goes on."""
    results: Results = {}
    while left := [item for item in items if item["name"] not in results]:
        place = Path(tempfile.mkdtemp(dir=folder))
        fault = launch(place, left, until - time.time())
        new = {
            item["name"]: json.loads(path.read_text())
            for item in left
            if (path := place / f"{item['name']}.json").exists()
        }
        results |= new
        if len(new) < len(left) and (not new or fault == OUT_OF_TIME):
            return results | {i["name"]: _missing(fault) for i in left if i["name"] not in new}
    return results


def _missing(fault: str) -> dict[str, Any]:
    return {"error": f"not reached: {fault}", "kind": "defect"}


def launch(place: Path, items: list[dict[str, Any]], seconds: float) -> str:
    """Run the tests' worker on a plan; why it ended early, if it did."""
    plan_file, port = place / "plan.json", free_port()
    plan_file.write_text(json.dumps(items))
    command = [*deepspeed_program(), "--num_accelerators", "1", "--master_port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    log = place / "log"
    code = run([*command, str(WORKER), str(plan_file)], environment, log, seconds)
    remove_shared_memory(port)
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "the launcher said nothing")
    return OUT_OF_TIME if code is None else last


def run(command: list[str], environment: dict[str, str], log: Path, seconds: float) -> int | None:
    """Exit code, or None where it took longer; whatever it started has then ended too."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
        try:
            return process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):  # the ranks of a launcher that was killed live on
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def table(results: Results) -> str:
    """A row a layout: its last loss, and the largest relative difference to ZeRO-0."""
    lines = ["| trains | dtype | layout | last loss | largest difference to zero0 |"]
    lines.append("|---|---|---|---:|---:|")
    for name, result in results.items():
        family, dtype, layout = name.split("|")
        if "error" in result:
            reason = result["error"].strip().splitlines()[-1][:120].replace("|", "/")
            lines.append(f"| {family} | {dtype} | {layout} | {reason} | |")
            continue
        truth = results[f"{family}|{dtype}|zero0"].get("losses", [])
        pairs = zip(result["losses"], truth, strict=False)
        worst = max((abs(a - b) / b for a, b in pairs), default=float("nan"))
        last = result["losses"][-1]
        lines.append(f"| {family} | {dtype} | {layout} | {last:.5f} | {worst:.1e} |")
    return "\n".join(lines)


def quickstart(folder: Path, seconds: float) -> tuple[str, bool]:
    """The end of what the quickstart prints, and whether it came to its end."""
    command = [sys.executable, "-m", "ds_train", "quickstart", "--output-dir", str(folder)]
    log = folder.with_suffix(".log")
    code = run(command, dict(os.environ), log, seconds)
    if code is None:
        return f"quickstart: {OUT_OF_TIME}", False
    lines = log.read_text(errors="replace").splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("task, held-out")), None)
    shown = lines[-20:] if start is None else lines[start : start + 8]
    return "\n".join(shown), code == 0


def main() -> int:
    """Run everything and print it."""
    args, began = arguments(), time.time()
    until = began + args.time_limit
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = machine(device)
    title = f"# One device: {facts.get('gpu', 'CPU, no GPU found')}\n\n{machine_line(facts)}"

    def report(results: Results, asked: str) -> str:
        took = f"{len(results)} trainings, {time.time() - began:.0f} s."
        text = f"{title} {took}\n\n{table(results)}\n\n```\n{asked}\n```\n"
        if args.output is not None:
            write(args.output, text, {"machine": facts, "trainings": results, "quickstart": asked})
        return text

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenarios.write_inputs(folder)
        results = train_all(folder, plan(folder, args.quick), until)
        asked, well = "quickstart: left out of --quick", True
        if not args.quick:
            report(results, "quickstart: not reached")
            asked, well = quickstart(folder / "quickstart", until - time.time())
        print(report(results, asked))
    defects = [name for name, result in results.items() if result.get("kind") == "defect"]
    if defects:
        print(f"{len(defects)} of {len(results)} trainings failed: {', '.join(defects)}")
    return 0 if well and not defects else 1


if __name__ == "__main__":
    sys.exit(main())
