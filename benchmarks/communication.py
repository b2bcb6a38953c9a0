"""What watching the communication of a run costs, and what it sees.

    python benchmarks/communication.py --work /tmp/communication [--only NAME ...]

Two processes on the CPU (gloo), one started for each rank. Blocks of 25 steps of a training
are watched and not watched in turns (`communication_worker.py`). `report.communication_every` is
25, so that each watched block has a counted step, where a run has one in four. What is in the work
folder already is not measured again. Writes benchmarks/results/communication.md.
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
BLOCK = 25
SLEEP_SECONDS = 0.02


def cases(folder: Path) -> list[dict[str, Any]]:
    """Every stage, full and LoRA; gathers of every layer; a rank that is slow."""
    found = [
        _case(folder, f"{method}-zero{stage}", method, stage, pairs=3)
        for method in ("full", "lora")
        for stage in (0, 1, 2, 3)
    ]
    slow = {"slow": SLEEP_SECONDS, "pairs": 1}
    found += [_case(folder, f"lora-zero{stage}-slow", "lora", stage, **slow) for stage in (2, 3)]
    found.append(
        _case(folder, "lora-zero3-each-layer", "lora", 3, zero=plan_cases.NO_REUSE, pairs=1)
    )
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


def own_share(result: dict[str, Any]) -> float:
    """Share of an unwatched step's CPU time that watching takes by itself, with 1 step in 100
    counted: what is done once a step, and for each call and the wait for it."""
    own, last = result["own"], result["records"][-1]
    calls = sum(row["calls"] for row in last["collectives"].values())
    seconds = own["step"] + calls * (2 * own["call"] + own["counted_call"] / 100)
    return float(seconds / (median(one[1] for one in result["times"]["plain"]) / BLOCK))


def cost_table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Markdown."""
    yield (
        "| run | step: wall, CPU ms | watching by itself | CPU time: median (each pair) "
        "| wall time: median | counted step: CPU |"
    )
    yield "|---|---|---|---|---|---|"
    for name, result in results.items():
        cpu, wall = overheads(result, 1), overheads(result, 0)
        usual = median(one["cpu_seconds"] for one in result["fields"] if "exposed_seconds" in one)
        numbers = [one["counted_step"] for one in result["records"]]
        counted = [result["fields"][number - 1]["cpu_seconds"] for number in numbers]
        pairs = ", ".join(f"{100 * one:+.1f}" for one in cpu)
        step = [1e3 * median(one[n] for one in result["times"]["plain"]) / BLOCK for n in (0, 1)]
        yield (
            f"| {name} | {step[0]:.0f}, {step[1]:.1f} | {100 * own_share(result):.2f} % "
            f"| {100 * median(cpu):+.1f} % ({pairs}) | {100 * median(wall):+.1f} % "
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
    shares = {name: own_share(one) for name, one in level.items()}
    worst = max(shares, key=shares.__getitem__)
    own = {
        key: 1e6 * median(one["own"][key] for one in results.values())
        for key in ("step", "call", "counted_call")
    }
    noise = [one for result in level.values() for one in overheads(result, 1)]
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
        f"By itself, with a backend that does nothing, watching takes {own['step']:.0f} us of CPU "
        f"time a step, {own['call']:.1f} us a call or wait, and {own['counted_call']:.0f} us a "
        f"call of a counted step: at most {100 * shares[worst]:.2f} % of a step ({worst}). The "
        "blocks are the same run with everything in it, and with the other work of this machine, "
        f"which moved their CPU time by {100 * min(noise):+.1f} to {100 * max(noise):+.1f} %, "
        f"median {100 * median(noise):+.1f} %. CPU time is that of rank 0 with all its threads.",
        "",
        *cost_table(level),
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
