"""Choosing rows under a curriculum on ten million samples: time of a step, memory, start-up.

    python benchmarks/curriculum.py [--samples 10000000] [--quick]

Each case runs in a process of its own, over lengths and difficulties that lie in memory-mapped
files, as in a run. Memory is what the plan adds to the process (resident, pages of mapped files
that it reads included) after imports and after opening the data. Times are CPU time of the
process: it computes on one core and waits for nothing. Writes benchmarks/results/curriculum.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

BATCH = 64
NUM_STEPS = 1000
CASES: dict[str, dict[str, Any]] = {
    "easy_to_hard, one sample a row": {"packing": False},
    "easy_to_hard, packed": {},
    "hard_to_easy, value, packed": {
        "curriculum": {"order": "hard_to_easy", "normalise": "value"},
    },
    "random_pool, packed": {"curriculum": {"order": "random_pool"}},
    "easy_to_hard, cover, packed": {"curriculum": {"cover": True}},
    "window of 4,096, packed": {"curriculum": {"window": 4096}},
    "stratified by 3 sources, packed": {"curriculum": {"stratify_by": "source"}},
    "mixture of 3 sources, packed": {"curriculum": None, "mixture": True},
    "mixture with pools, packed": {"mixture": True},
    "uniform (epochs, no curriculum), packed": {"curriculum": {"order": "uniform"}},
}
MIXTURE = {
    "stages": [
        {"until": 0.5, "weights": {"s0": 6, "s1": 3, "s2": 1}},
        {"weights": {"s0": 1, "s1": 1, "s2": 1}},
    ]
}


def main() -> None:
    """Every case, the table, the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="print only, write no file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        print(json.dumps(measure(args.folder, CASES[args.case])))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name), args.samples)
        for case in CASES:
            command = [sys.executable, __file__, "--case", case, "--folder", name]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append({"case": case, **json.loads(result.stdout)})
            print(rows[-1], flush=True)
    text = table(rows, args.samples)
    print(text)
    if not args.quick:
        path = Path(__file__).parent / "results" / "curriculum.md"
        path.write_text(text, encoding="utf-8")


def write_data(folder: Path, num_samples: int) -> None:
    """Chat-like lengths, difficulty that goes with them, three sources of unlike size."""
    draw = np.random.default_rng(0)
    lengths = np.minimum(2048, 4 + draw.lognormal(4.6, 0.8, num_samples)).astype(np.int32)
    difficulty = (lengths * draw.uniform(0.5, 1.5, num_samples)).astype(np.float32)
    sources = draw.choice(3, num_samples, p=[0.7, 0.25, 0.05]).astype(np.int16)
    for name, values in (("lengths", lengths), ("difficulty", difficulty), ("sources", sources)):
        values.tofile(folder / f"{name}.bin")


def open_data(folder: Path) -> tuple[Any, Any]:
    """Prepared data and difficulties over the mapped files."""
    from ds_train.curriculum.scores import DifficultyScores
    from ds_train.data.divide import PreparedData
    from ds_train.data.store import TokenStore

    lengths = np.memmap(folder / "lengths.bin", np.int32, mode="r")
    none = np.empty(0)
    store = TokenStore(
        lengths=lengths,
        supervised=lengths,
        num_bytes=lengths,
        sources=np.memmap(folder / "sources.bin", np.int16, mode="r"),
        hashes=none,
        ordinals=none,
        starts=none,
        flat_tokens=none,
        flat_mask=none,
        meta={},
    )
    prepared = PreparedData(store, None, {}, "data", ("s0", "s1", "s2"), (1.0, 1.0, 1.0))
    values = np.memmap(folder / "difficulty.bin", np.float32, mode="r")
    return prepared, DifficultyScores(values, "difficulty", "length")


def measure(folder: Path, case: dict[str, Any]) -> dict[str, float]:
    """One case: seconds and MB."""
    from ds_train.curriculum.plan import build_step_plan

    prepared, scores = open_data(folder)
    config = recipe(case, int(prepared.train.lengths.sum(dtype=np.int64)))
    before, began = memory(), time.process_time()
    plan = build_step_plan(config, prepared, scores, BATCH)
    plan.rows(0)
    first_step = time.process_time() - began
    seen = [memory()]
    total_steps = plan.total_steps(config.train)
    whole_run = time.process_time() - began
    seen.append(memory())
    began, start = time.process_time(), total_steps // 3
    plan.rows(start)
    back = time.process_time() - began
    times = []
    for step in range(start + 1, start + 1 + NUM_STEPS):
        began = time.process_time()
        plan.rows(step)
        times.append(time.process_time() - began)
        if step % 100 == 0:
            seen.append(memory())
    return {
        "steps": total_steps,
        "first_step_s": first_step,
        "whole_run_s": whole_run,
        "jump_s": back,
        "mean_ms": 1000 * float(np.mean(times)),
        "p99_ms": 1000 * float(np.percentile(times, 99)),
        "worst_ms": 1000 * float(np.max(times)),
        "resident_mb": (max(one[0] for one in seen) - before[0]) / 1e6,
        "own_mb": (max(one[1] for one in seen) - before[1]) / 1e6,
        "peak_mb": (max(one[2] for one in seen) - before[0]) / 1e6,
    }


def recipe(case: dict[str, Any], max_tokens: int) -> Any:
    """A run over one pass of the tokens."""
    from ds_train.config.run import RunConfig

    data: dict[str, Any] = {
        "train": [{"path": f"{i}.jsonl", "name": f"s{i}"} for i in range(3)],
        "max_length": 2048,
        "packing": case.get("packing", True),
    }
    if case.get("mixture"):
        data["mixture"] = MIXTURE
    return RunConfig.model_validate(
        {
            "output_dir": "run",
            "model": {"name_or_path": "model"},
            "data": data,
            "curriculum": case.get("curriculum", {}),
            "train": {"max_tokens": max_tokens},
        }
    )


def memory() -> tuple[int, int, int]:
    """Bytes: resident, of these not shared with files, and the highest resident so far."""
    facts = psutil.Process().memory_full_info()
    status = Path("/proc/self/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return facts.rss, facts.uss, 1024 * int(peak)


def table(rows: list[dict[str, Any]], num_samples: int) -> str:
    """The results as Markdown."""
    today = time.strftime("%Y-%m-%d")
    lines = [
        "# Choosing rows under a curriculum",
        "",
        f"{today}, {platform.machine()}, {os.cpu_count()} CPU cores shared with other work "
        "(so times are CPU time of the process), "
        f"{num_samples:,} samples, {BATCH} rows of up to 2,048 tokens a step, one pass over the "
        f"tokens; {NUM_STEPS:,} steps in a row from a third of the run on. Made by "
        "`python benchmarks/curriculum.py`.",
        "",
        "- first step: from opened data to the rows of the first step",
        "- whole run: the same, and how many steps the tokens make (planned before the run when "
        "tokens limit it)",
        "- jump: rows of a step far from the last one asked for",
        "- resident, own: what the process grows by, with and without pages of mapped files; peak: "
        "the highest it ever was",
        "",
        "| case | steps | first step s | whole run s | jump s | mean ms | 99 % ms | worst ms | "
        "resident MB | own MB | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = [
            f"{row['steps']:,}",
            *(f"{row[key]:.2f}" for key in ("first_step_s", "whole_run_s", "jump_s")),
            *(f"{row[key]:.2f}" for key in ("mean_ms", "p99_ms", "worst_ms")),
            *(f"{row[key]:.0f}" for key in ("resident_mb", "own_mb", "peak_mb")),
        ]
        lines.append(f"| {row['case']} | " + " | ".join(numbers) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
