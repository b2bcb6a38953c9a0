"""The fused loss on a CPU against what else computes it: time, peak memory, errors.

Forward and backward of the sum over supervised tokens, full and frozen head, without and with
masked labels. Times are of one process (`loss_rounds.py`), memory of processes of their own
(`loss_memory.py`), errors against fp64 on inputs like a trained model's (`loss_inputs.py`).

On a busy machine take OMP_NUM_THREADS=1: a thread that waits for another, which other programs keep
from running, is charged for waiting. TRL is a peer where it is installed (`pip install trl`).

usage: python benchmarks/loss_cpu.py [--output benchmarks/results/loss_cpu.md] [--quick]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from loss_inputs import DTYPES, Case, Truth, make_inputs, variants
from loss_memory import measured_peaks
from loss_peers import CPU_PEERS, EAGER, Peer, chosen, selected
from loss_report import (
    ERROR_COLUMNS,
    as_json,
    error,
    machine,
    machine_line,
    mebibytes,
    milliseconds,
    table,
    times,
    write,
)
from loss_rounds import Limits, Run, clock_with_pages, measure

SHAPES = ((512, 896, 32768), (2048, 576, 49152), (1024, 2048, 128256))
QUICK_SHAPES = ((48, 32, 515),)
COLUMNS = [
    "provider",
    "ms, least",
    "ms, median",
    "calls",
    "x eager",
    "x eager, CPU time",
    "extra MiB",
    "of eager's",
    "kept MiB",
    *(f"error of {name}" for name in ERROR_COLUMNS.values()),
]
_MEMORY_TIMEOUT_SECONDS = 120
_MEMORY_CALL_SECONDS = 10
_CPU = torch.device("cpu")
Results = list[tuple[Case, dict[str, Run]]]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file; JSON is written beside it")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it all run?")
    parser.add_argument("--shapes", nargs="+", type=_shape, metavar="N,D,V")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=5)
    names = [peer.name for peer in CPU_PEERS]
    parser.add_argument(
        "--providers", nargs="+", choices=names, default=names, metavar="NAME",
        help=", ".join(names),
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=10, help="timed calls of a provider and case, at least one"
    )
    parser.add_argument(
        "--one-call-seconds", type=float, default=30, help="leave out what is slower"
    )
    return parser.parse_args()


def _shape(text: str) -> tuple[int, int, int]:
    shape = [int(part) for part in text.split(",")]
    if len(shape) != 3 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text}: tokens,hidden size,vocabulary are needed")
    return shape[0], shape[1], shape[2]


def add_memory(peers: tuple[Peer, ...], results: Results) -> None:
    """Peak memory of all peers on the cases of one shape and dtype."""
    cases = [case for case, _ in results]
    for peer in peers:
        runs = [runs[peer.name] for _, runs in results]
        for run in runs:
            if run.measured and run.fastest > _MEMORY_CALL_SECONDS:
                run.memory_reason = f"one call takes over {_MEMORY_CALL_SECONDS} s"
        tried = [i for i, run in enumerate(runs) if not (run.reason or run.memory_reason)]
        if not tried:
            continue
        peaks = measured_peaks(peer, [cases[i] for i in tried], _MEMORY_TIMEOUT_SECONDS)
        for i, peak in zip(tried, peaks, strict=True):
            if isinstance(peak, str):
                runs[i].memory_reason = peak
            else:
                runs[i].memory_bytes, runs[i].kept_bytes = peak


def rows(runs: dict[str, Run]) -> list[list[str]]:
    """A row a peer."""
    eager = runs.get(EAGER.name, Run(EAGER.name))
    result = []
    for name, run in runs.items():
        if run.reason is not None:
            result.append([name, run.reason, *[""] * (len(COLUMNS) - 2)])
            continue
        result.append(
            [
                name,
                milliseconds(run.fastest),
                milliseconds(run.median),
                str(len(run.measured)),
                times(run.ratio_to(eager)),
                times(run.cpu_ratio_to(eager)),
                run.memory_reason or mebibytes(run.memory_bytes),
                part(run, eager),
                mebibytes(run.kept_bytes),
                *(error(run.errors, key) for key in ERROR_COLUMNS),
            ]
        )
    return result


def part(run: Run, eager: Run) -> str:
    """Of eager's memory."""
    if run.memory_bytes is None or not eager.memory_bytes:
        return ""
    return f"{run.memory_bytes / eager.memory_bytes:.3f}"


def summary(results: Results) -> str:
    """How ours compares to eager, all cases in one table."""
    lines = []
    for case, runs in results:
        run, eager = runs.get("ds-train"), runs.get(EAGER.name)
        if run is None or eager is None or run.reason or eager.reason:
            continue
        others = {n: r.median for n, r in runs.items() if r.measured and "ds-train" not in n}
        best = min(others, key=lambda name: others[name])
        lines.append(
            [
                case.title(),
                times(run.ratio_to(eager)),
                times(run.cpu_ratio_to(eager)),
                part(run, eager),
                times(run.ratio_to(runs[best])),
                best,
            ]
        )
    columns = ["case", "x eager", "x eager, CPU time", "memory, of eager's"]
    return table([*columns, "x the fastest peer", "which is"], lines)


def text(facts: dict[str, Any], results: Results, peers: tuple[Peer, ...], took: float) -> str:
    """The whole result."""
    parts = [
        "# LM head + cross-entropy on a CPU",
        machine_line(facts),
        f"`auto` takes: {facts['auto']}. Whole run: {took:.0f} s.",
        "Forward and backward of the sum over supervised tokens, interleaved in one process in "
        "changing order. `x eager` is the median over the rounds of eager's time by this "
        "provider's in the same round; above 1 is faster. CPU time is that of all threads, which "
        "other programs disturb less. Before each call the process has touched and freed twice "
        "the memory that eager takes, so that a virtual machine has it at hand (`loss_rounds.py`). "
        "`extra MiB` is the high-water mark of the resident set "
        "in a process's first call, beyond inputs and returned gradients; `kept MiB`, a part of "
        "it, is what stays for the next ones (`loss_memory.py` has the formula). Errors are "
        "relative, against fp64. Timed calls "
        f"of a provider and case stop after {facts['seconds']:g} s; one whose call would take "
        f"longer than {facts['one_call_seconds']:g} s is left out.",
        "\n".join(f"- {peer.name}: {peer.about}" for peer in peers),
        "## In short",
        summary(results),
    ]
    for case, runs in results:
        parts += [f"## {case.title()}", table(COLUMNS, rows(runs))]
    return "\n\n".join(parts) + "\n"


def pages_of(case: Case) -> int:
    """Bytes: twice what eager takes, logits in the dtype and in fp32, a softmax, and gradients."""
    width = DTYPES[case.dtype].itemsize
    return 2 * (case.tokens * case.vocab * (2 * width + 12) + width * case.vocab * case.dim)


def main() -> None:
    """Run everything and print it."""
    args, began = arguments(), time.time()
    peers = selected(CPU_PEERS, args.providers, args.quick)
    limits = Limits(args.rounds, args.seconds, args.one_call_seconds)
    facts = machine(_CPU)
    facts["auto"] = "; ".join(f"{dtype} {chosen(_CPU, dtype)}" for dtype in args.dtypes)
    facts |= {"rounds": args.rounds, "seconds": args.seconds}
    facts["one_call_seconds"] = args.one_call_seconds
    results: Results = []
    for tokens, dim, vocab in args.shapes or (QUICK_SHAPES if args.quick else SHAPES):
        for dtype in args.dtypes:
            case = Case(tokens, dim, vocab, dtype)
            inputs = make_inputs(case, _CPU)
            truth = Truth(case, inputs)
            clock = clock_with_pages(pages_of(case))
            group = [(v, measure(peers, v, inputs, truth, limits, clock)) for v in variants(case)]
            del inputs, truth
            add_memory(peers, group)
            results += group
            written = text(facts, results, peers, time.time() - began)
            if args.output is not None:
                cases = [as_json(*result) for result in results]
                write(args.output, written, {"machine": facts, "cases": cases})
    print(written)


if __name__ == "__main__":
    main()
