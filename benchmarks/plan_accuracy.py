"""`ds-train plan` against real runs: bytes of every collective, and the memory of processes.

    python benchmarks/plan_accuracy.py --work /tmp/plan_accuracy [--only traffic|memory]

Starts 1 and 2 processes on the CPU (gloo), once for all traffic and twice for each memory case:
what is freed goes back to the system, or stays in glibc's heap. What is in the work folder already
is not measured again. Writes benchmarks/results/plan_accuracy.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import plan_cases

from ds_train.config.run import RunConfig
from ds_train.launch.command import free_port
from ds_train.launch.process import remove_shared_memory
from ds_train.plan.cluster import Cluster
from ds_train.plan.cpu_heap import GIVE_BACK, OF_ACTIVATIONS, OF_GATHERED
from ds_train.plan.cpu_libraries import PROCESS_BYTES
from ds_train.plan.estimate import Estimate, estimate
from ds_train.plan.model_files import describe_model

HERE = Path(__file__).resolve().parent
OPERATIONS = {
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}
ALLOCATOR = ("LD_PRELOAD", *GIVE_BACK)
"""Of the caller; not passed on."""
SMALL = 16
"""Bytes of the messages about overflow and norm, which the plan leaves out."""
MB = 1e6


def planned(case: plan_cases.Case, *, keeps_freed: bool = False) -> Estimate:
    """What the plan says of a case. `keeps_freed`: by glibc's heap."""
    config = RunConfig.model_validate(case["recipe"])
    cluster = Cluster("this CPU", 1, case["ranks"], is_cpu=True, keeps_freed=keeps_freed)
    return estimate(config, describe_model(config.model), cluster)


def launch(
    worker: str, arguments: list[Path], ranks: int, log: Path, more: Mapping[str, str] | None = None
) -> None:
    """One process a rank, as a launcher starts them; SystemExit with the log where one fails."""
    port = free_port()
    command = [sys.executable, str(HERE / worker), *map(str, arguments)]
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ALLOCATOR},
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        **(more or {}),
    }
    with log.open("w") as file:
        started = [
            subprocess.Popen(
                command,
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=file,
                stderr=file,
            )
            for rank in range(ranks)
        ]
        while any(one.poll() is None for one in started) and not any(_failed(started)):
            time.sleep(0.2)
    failed = any(_failed(started))
    for one in started:  # the others would wait for it
        one.kill()
        one.wait()
    remove_shared_memory(port)
    if failed:
        raise SystemExit(f"{worker} failed: {log}")


def _failed(started: list[subprocess.Popen[bytes]]) -> Iterator[bool]:
    """Of processes that have ended."""
    return (bool(one.poll()) for one in started)


class Traffic(NamedTuple):
    """One collective of one case: bytes and calls of a step."""

    name: str
    operation: str
    planned_bytes: int
    logged_bytes: int
    planned_calls: int
    logged_calls: int


def compare_traffic(one: plan_cases.Case, step: dict[str, Any]) -> Iterator[Traffic]:
    """A case's collectives; `step`: what the logger saw, {name: {bytes: calls}}."""
    plan = planned(one)
    for logged, operation in OPERATIONS.items():
        calls = {int(size): count for size, count in step.get(logged, {}).items()}
        calls = {size: count for size, count in calls.items() if size > SMALL}
        parts = [part for part in plan.collectives if part.operation == operation]
        if calls or parts:
            yield Traffic(
                one["name"],
                operation,
                sum(part.logged for part in parts),
                sum(size * count for size, count in calls.items()),
                sum(part.calls for part in parts),
                sum(calls.values()),
            )


def measure_traffic(work: Path) -> Iterator[Traffic]:
    """Every case of `plan_cases.traffic_cases`."""
    place = work / "traffic"
    place.mkdir(exist_ok=True)
    cases = plan_cases.traffic_cases(work)
    todo = [one for one in cases if not (place / f"{one['name']}.json").exists()]
    if todo:
        (place / "plan.json").write_text(json.dumps(todo))
        launch("plan_worker.py", [place / "plan.json"], 2, place / "log")
    for one in cases:
        steps = json.loads((place / f"{one['name']}.json").read_text())["steps"]
        yield from compare_traffic(one, steps[-1])


def measure_memory(work: Path, *, keeps_freed: bool) -> Iterator[tuple[str, int, int, int]]:
    """Name, bytes of the model planned and measured, and of the process before it."""
    place = work / ("memory-kept" if keeps_freed else "memory")
    place.mkdir(exist_ok=True)
    for one in plan_cases.memory_cases(work):
        result = place / f"{one['name']}.json"
        if not result.exists():
            recipe, tiny = place / f"{one['name']}.recipe", place / f"{one['name']}.tiny"
            recipe.write_text(json.dumps(one["recipe"]))
            small = json.loads(recipe.read_text())
            small["model"]["name_or_path"] = str(work / "tiny")
            small["output_dir"] += "-tiny"
            tiny.write_text(json.dumps(small))
            log = place / f"{one['name']}.log"
            more = {} if keeps_freed else GIVE_BACK
            launch("plan_memory_worker.py", [tiny, recipe, result], one["ranks"], log, more)
        found = json.loads(result.read_text())
        peak = found["steps"][-1]["peak"] - found["before"]
        plan = planned(one, keeps_freed=keeps_freed).memory.peak - PROCESS_BYTES
        yield one["name"], plan, peak, found["before"]


def traffic_table(rows: list[Traffic]) -> list[str]:
    """Markdown."""
    lines = ["| run | collective | planned bytes | logged bytes | error | calls planned, logged |"]
    lines.append("|---|---|---|---|---|---|")
    for name, operation, plan, real, calls, seen in rows:
        error = f"{100 * (plan / real - 1):+.2f} %" if real else "not seen"
        lines.append(
            f"| {name} | {operation} | {plan:,} | {real:,} | {error} | {calls:,}, {seen:,} |"
        )
    return lines


def memory_table(rows: list[tuple[str, int, int, int]]) -> list[str]:
    """Markdown."""
    lines = ["| run | planned | measured | error | whole process: planned, measured, error |"]
    lines.append("|---|---|---|---|---|")
    for name, plan, real, before in rows:
        whole, seen = plan + PROCESS_BYTES, real + before
        lines.append(
            f"| {name} | {plan / MB:.0f} MB | {real / MB:.0f} MB "
            f"| {100 * (plan / real - 1):+.1f} % | {whole / MB:.0f}, {seen / MB:.0f} MB, "
            f"{100 * (whole / seen - 1):+.1f} % |"
        )
    return lines


def worst(errors: list[float]) -> str:
    """The largest of some errors, in percent."""
    return f"{100 * max(errors, key=abs):+.1f} %"


def whole_errors(memory: list[tuple[str, int, int, int]]) -> list[float]:
    """Of the memory of whole processes."""
    return [(plan + PROCESS_BYTES) / (real + before) - 1 for _, plan, real, before in memory]


def write(path: Path, traffic: list[Any], memory: list[Any], kept: list[Any]) -> None:
    """The page of results."""
    bytes_off = [plan / real - 1 for _, _, plan, real, _, _ in traffic if real]
    model_off = [plan / real - 1 for _, plan, real, _ in memory]
    kept_off = whole_errors(kept)
    lines = [
        "# `ds-train plan` against real runs",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} CPU cores, {platform.machine()}, gloo; "
        "`python benchmarks/plan_accuracy.py --work FOLDER`. No GPU: fragmentation, NCCL and the "
        "sizes of buckets on a GPU are from the source, not measured.",
        "",
        "## Communication of one step, as DeepSpeed's communication logger counts it",
        "2 ranks, tiny models, the fifth step (ZeRO-3 knows the order of modules after two). A "
        f"gather counts the part of one rank. Worst of {len(traffic)}: {worst(bytes_off)}.",
        "",
        *traffic_table(traffic),
        "",
        "## Memory of a process",
        "Highest resident memory in the third step, less what was resident before the model; a "
        "tiny model was trained in the same way before, so that libraries are loaded. `MALLOC_MMAP_"
        "THRESHOLD_` is set, so that what is freed is not resident. The last number of a name is "
        "that of ranks. What oneDNN has compiled (bf16) and MKL has packed (fp32) is part of both "
        "numbers, and no part of a plan for GPUs: `ds_train/plan/cpu_libraries.py`. "
        f"Worst of {len(memory)}: {worst(model_off)} of the model's own memory, "
        f"{worst(whole_errors(memory))} of the whole process.",
        "",
        *memory_table(memory),
        "",
        "## The same where glibc's heap keeps what is freed",
        f"As a run is without that variable ({' '.join(platform.libc_ver())}). The plan adds "
        f"{OF_ACTIVATIONS} times the activations of a pass without recomputation and "
        f"{OF_GATHERED} times what ZeRO-3 holds "
        "gathered, two numbers that were fitted to these very runs: "
        f"{100 * min(kept_off):+.1f} to {100 * max(kept_off):+.1f} % of the whole process.",
        "",
        *memory_table(kept),
        "",
    ]
    path.write_text("\n".join(lines))


def main() -> None:
    """Measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", choices=["traffic", "memory"])
    arguments = parser.parse_args()
    plan_cases.write_inputs(arguments.work)
    traffic = [] if arguments.only == "memory" else list(measure_traffic(arguments.work))
    memory, kept = (
        [] if arguments.only == "traffic" else list(measure_memory(arguments.work, keeps_freed=one))
        for one in (False, True)
    )
    if traffic:
        print("\n".join(traffic_table(traffic)))
    if memory:
        print("\n".join([*memory_table(memory), *memory_table(kept)]))
    if traffic and memory:
        write(HERE / "results" / "plan_accuracy.md", traffic, memory, kept)


if __name__ == "__main__":
    main()
