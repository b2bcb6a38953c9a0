"""Tables of the loss benchmark on a GPU."""

from __future__ import annotations

from typing import Any

from loss_gemms import FLOOR, SQUARE
from loss_inputs import Case
from loss_peers import EAGER, Peer
from loss_report import ERROR_COLUMNS, error, machine_line, mebibytes, milliseconds, table, times
from loss_rounds import Run

Results = list[tuple[str, Case, dict[str, Run]]]
COLUMNS = [
    "provider",
    "ms, median",
    "ms, least",
    "of the floor's time",
    "x eager",
    "TFLOP/s",
    "of the square GEMM's rate",
    "extra MiB",
    *(f"error of {name}" for name in ERROR_COLUMNS.values()),
]


def rows(case: Case, runs: dict[str, Run], square_size: int) -> list[list[str]]:
    """A row a provider; the two of GEMMs alone come first."""
    square, result = runs[SQUARE], []
    rate = 2.0 * square_size**3 / square.median if square.measured else None
    for name, run in runs.items():
        if run.reason is not None or not run.measured:
            result.append([name, run.reason or "no call", *[""] * (len(COLUMNS) - 2)])
            continue
        flop = 2.0 * square_size**3 if name == SQUARE else case.flop
        alone = name in (FLOOR, SQUARE)
        result.append(
            [
                name,
                milliseconds(run.median),
                milliseconds(run.fastest),
                "" if name == SQUARE else _inverse(run.ratio_to(runs[FLOOR])),
                "" if alone or EAGER.name not in runs else times(run.ratio_to(runs[EAGER.name])),
                f"{flop / run.median / 1e12:.3g}",
                "" if rate is None else f"{flop / run.median / rate:.1%}",
                "" if alone else run.memory_reason or mebibytes(run.memory_bytes),
                *("" if alone else error(run.errors, key) for key in ERROR_COLUMNS),
            ]
        )
    return result


def summary(results: Results) -> str:
    """Ours on every case: against the floor and the best of the others."""
    lines = []
    for head, case, runs in results:
        run = runs.get("ds-train")
        if run is None or not run.measured:
            continue
        peers = {n: r for n, r in runs.items() if n not in (FLOOR, SQUARE) and "ds-train" not in n}
        medians = {n: r.median for n, r in peers.items() if r.measured}
        fastest = min(medians, key=lambda name: medians[name], default=None)
        sizes = {n: r.memory_bytes for n, r in peers.items() if r.memory_bytes is not None}
        smallest = min(sizes, key=lambda name: sizes[name], default=None)
        lines.append(
            [
                f"{head}, {'frozen' if case.frozen else 'full'}, {case.masked:.0%} masked",
                milliseconds(run.median),
                _inverse(run.ratio_to(runs[FLOOR])),
                times(run.ratio_to(runs[fastest])) if fastest else "",
                fastest or "",
                mebibytes(run.memory_bytes),
                f"{mebibytes(sizes[smallest])} ({smallest})" if smallest else "",
            ]
        )
    columns = ["case", "ms", "of the floor's time", "faster than the fastest peer", "which is"]
    return table([*columns, "extra MiB", "least extra MiB of a peer"], lines)


def text(
    facts: dict[str, Any], results: Results, peers: tuple[Peer, ...], square_size: int, took: float
) -> str:
    """The whole result."""
    flush = "emptied" if facts["flush_l2"] else "not emptied"
    parts = [
        "# LM head + cross-entropy on a GPU",
        machine_line(facts),
        f"`auto` takes: {facts['auto']}. {facts['rounds']} rounds, {took:.0f} s.",
        "Forward and backward of the sum over supervised tokens, timed with CUDA events; all "
        "providers in one process, once a round, in changing order; the L2 is "
        f"{flush} before a call. Times are medians, ratios the median over the rounds of the ratio "
        "within one. TFLOP/s counts the products that supervised tokens need (two with a frozen "
        "head, else three), whatever a provider computes. `extra MiB` is the allocator's peak "
        "beyond inputs and returned gradients. Errors are relative, against fp64.",
        f"The floor is those products on whole matrices; the square GEMM is of {square_size}.",
        "\n".join(f"- {peer.name}: {peer.about}" for peer in peers),
        "## In short",
        summary(results),
    ]
    for head, case, runs in results:
        parts += [f"## {head}: {case.title()}", table(COLUMNS, rows(case, runs, square_size))]
    return "\n\n".join(parts) + "\n"


def _inverse(ratio: float | None) -> str:
    return "" if not ratio else f"{1 / ratio:.3f} x"
