"""What watching the communication of a run costs, and what it sees.

    python benchmarks/communication.py --work /tmp/communication [--only NAME ...]

Two processes on the CPU (gloo), started by the deepspeed launcher. Blocks of 50 steps of a training
are watched and not watched in turns (`communication_worker.py`). `report.communication_every` is
50, half its default, so that each watched block has a counted step, where a run has one in two.
What is in the work folder already is not measured again. Writes
benchmarks/results/communication.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import plan_cases
from plan_accuracy import launch

HERE = Path(__file__).resolve().parent
BLOCK = 50
SLEEP_SECONDS = 0.02


def cases(folder: Path) -> list[dict[str, Any]]:
    """Every stage, full and LoRA; gathers of every layer; a rank that is slow."""
    found = [
        _case(folder, f"{method}-zero{stage}", method, stage, pairs=6)
        for method in ("full", "lora")
        for stage in (0, 1, 2, 3)
    ]
    found.append(
        _case(folder, "lora-zero3-each-layer", "lora", 3, zero=plan_cases.NO_REUSE, pairs=1)
    )
    slow = {"slow": SLEEP_SECONDS, "pairs": 1}
    found += [_case(folder, f"lora-zero{stage}-slow", "lora", stage, **slow) for stage in (2, 3)]
    return found


def _case(
    folder: Path, name: str, method: str, stage: int, *, zero: Any = None, **rest: Any
) -> dict[str, Any]:
    if stage == 3:
        zero = zero or plan_cases.SHARD_ALL
    case = plan_cases.case(
        folder, name, "llama", method, stage, micro=1, accumulation=1, zero=zero, steps=2000
    )
    case["recipe"]["report"]["communication_every"] = BLOCK
    return {**case, "block": BLOCK, **rest}


def measure(work: Path, todo: list[dict[str, Any]]) -> None:
    """One launch for all that is missing."""
    missing = [one for one in todo if not (work / f"{one['name']}.json").exists()]
    if missing:
        (work / "plan.json").write_text(json.dumps(missing))
        launch("communication_worker.py", [work / "plan.json"], 2, work / "log")


def overheads(result: dict[str, Any], which: int) -> list[float]:
    """Of each pair of blocks: what watching added; 0: wall time, 1: CPU time of rank 0."""
    plain, watched = result["times"]["plain"], result["times"]["watched"]
    return [two[which] / one[which] - 1 for one, two in zip(plain, watched, strict=True)]


def cost_table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Markdown."""
    yield ("| run | ms a step | CPU time: median (each pair) | wall time: median | counted step |")
    yield "|---|---|---|---|---|"
    for name, result in results.items():
        cpu, wall = overheads(result, 1), overheads(result, 0)
        usual = median(one["seconds"] for one in result["fields"] if "exposed_seconds" in one)
        numbers = [one["counted_step"] for one in result["records"]]
        counted = [result["fields"][number - 1]["seconds"] for number in numbers]
        pairs = ", ".join(f"{100 * one:+.1f}" for one in cpu)
        yield (
            f"| {name} | {1e3 * median(one[0] for one in result['times']['plain']) / BLOCK:.1f} "
            f"| {100 * median(cpu):+.2f} % ({pairs}) | {100 * median(wall):+.2f} % "
            f"| {median(counted) / usual:.2f} x |"
        )


def bytes_table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Markdown."""
    yield "| run | collective | planned bytes | counted | error | calls planned, counted | ms |"
    yield "|---|---|---|---|---|---|---|"
    for name, result in results.items():
        for operation, row in result["records"][-1]["collectives"].items():
            if "planned_bytes" not in row:
                continue
            error = "" if "difference" not in row else f"{100 * row['difference']:+.2f} %"
            yield (
                f"| {name} | {operation} | {row['planned_bytes']:,} | {row['bytes']:,} | {error} "
                f"| {row['planned_calls']:,}, {row['calls']:,} | {1e3 * row['seconds']:.2f} |"
            )


def share_table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Markdown."""
    yield (
        "| run | share of a counted step | not hidden in the others | of that, the least of a rank "
        "| compute: min, max ms | rank 1 slowest |"
    )
    yield "|---|---|---|---|---|---|"
    for name, result in results.items():
        fields = [one for one in result["fields"][6:] if "exposed_seconds" in one]
        least, most, slow = (
            1e3 * median(one[key] for one in fields)
            for key in ("compute_seconds_min", "compute_seconds_max", "slowest_rank")
        )
        exposed = median(one["exposed_seconds"] / one["seconds"] for one in fields)
        lowest = median(one["exposed_seconds_min"] / one["seconds"] for one in fields)
        slow = sum(one["slowest_rank"] for one in fields) / len(fields)
        yield (
            f"| {name} | {median(one['share'] for one in result['records']):.1%} | {exposed:.1%} "
            f"| {lowest:.1%} | {least:.1f}, {most:.1f} | {slow:.0%} of {len(fields)} steps |"
        )


def page(results: dict[str, dict[str, Any]], cores: int) -> str:
    """The page of results."""
    level = {name: one for name, one in results.items() if "slow" not in name}
    cpu = {name: median(overheads(one, 1)) for name, one in level.items()}
    worst = max(cpu, key=cpu.__getitem__)
    own = [median(one["own"][which] for one in results.values()) for which in (0, 1)]
    off = [
        abs(row["difference"])
        for result in results.values()
        for one in result["records"]
        for row in one["collectives"].values()
        if "difference" in row
    ]
    lines = [
        "# Communication that runs record: what it costs, what it sees",
        "",
        f"{datetime.date.today()}, {cores} of {os.cpu_count()} CPU cores for both processes, "
        f"{platform.machine()}, gloo; `python benchmarks/communication.py --work FOLDER`. A llama "
        "of 206 thousand parameters, fp32, one row of 256 tokens a rank and step: so small that "
        f"fixed costs weigh most. Blocks of {BLOCK} steps are watched and not watched in turns. "
        "No GPU: that side of `engine/stopwatch.py` is tested with stand-ins only.",
        "",
        "## Cost",
        "CPU time is that of rank 0 with all its threads; other work on the machine blurs it less "
        "than wall time. Each watched block has one counted step; a run has one in "
        f"{2 * BLOCK} at most. Counted step: its wall time, beside one that is not. Largest median "
        f"of CPU time: {100 * cpu[worst]:+.2f} % ({worst}).",
        "",
        *cost_table(level),
        "",
        f"By itself, without any communication, watching takes {1e6 * own[0]:.0f} us of CPU time a "
        f"step and {1e6 * own[1]:.1f} us a call of a collective (medians over the runs).",
        "",
        "## Bytes of the last counted step against the plan's formulas",
        f"As DeepSpeed's logger counts: of a gather the part of one rank. Largest error of "
        f"{len(off)} rows of all counted steps: {100 * max(off):.2f} %. Time is blocking, of rank "
        "0.",
        "",
        *bytes_table(results),
        "",
        "## Share, exposed time, stragglers",
        f"Both processes share {cores} core{'s' if cores > 1 else ''}, so that a rank's waiting is "
        "mostly the other one's computing: the shares say that the measurement works, not what a "
        f"cluster would show. In runs named slow, rank 1 sleeps {1e3 * SLEEP_SECONDS:.0f} ms "
        "before its forward pass.",
        "",
        *share_table(results),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, write the page once nothing is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    plan_cases.write_inputs(arguments.work)
    every = cases(arguments.work)
    measure(
        arguments.work, [one for one in every if one["name"] in (arguments.only or one["name"])]
    )
    files = {one["name"]: arguments.work / f"{one['name']}.json" for one in every}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    text = page(results, len(os.sched_getaffinity(0)))
    print(text)
    if len(results) == len(files):
        (HERE / "results" / "communication.md").write_text(text)


if __name__ == "__main__":
    main()
