"""The fused loss on a GPU against what else computes it: time, memory, errors, share of the GEMMs.

Forward and backward of the sum over supervised tokens for the heads of well-known models, full and
frozen, without and with masked labels, on inputs like a trained model's (`loss_inputs.py`). Two
rows are GEMMs alone, timed in the same rounds: the products that the case needs, by cuBLAS on whole
matrices (the floor), and a square one of 8192 (the rate).

usage: python benchmarks/loss_gpu.py [--heads llama3-8b ...] [--output RESULT.md]
       python benchmarks/loss_gpu.py --device cpu --quick       (a rehearsal without a GPU)
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loss_gemms import gemm_peers
from loss_gpu_peers import GPU_PEERS
from loss_gpu_report import COLUMNS, Results, rows, summary, text
from loss_inputs import DTYPES, Case, Inputs, Truth, make_inputs, variants
from loss_peers import Peer, chosen, selected
from loss_report import as_json, machine, table, write
from loss_rounds import Call, Clock, Limits, Run, measure

TOKENS = 8192
HEADS: dict[str, tuple[int, int, float | None]] = {
    "llama3-8b": (4096, 128256, None),
    "gemma2-2b": (2304, 256000, None),
    "gemma2-2b-softcap": (2304, 256000, 30.0),
    "qwen2.5-7b": (3584, 152064, None),
}
_QUICK_TOKENS, _QUICK_DIM, _QUICK_VOCAB = 64, 32, 640
_SQUARE, _QUICK_SQUARE = 8192, 64
_WARM_UPS = 3
_QUICK_ROUNDS = 3
_FLUSH_BYTES = 256 * 2**20


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file; JSON is written beside it")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it all run?")
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=20)
    names = [peer.name for peer in GPU_PEERS]
    parser.add_argument(
        "--providers", nargs="+", choices=names, default=names, metavar="NAME",
        help=", ".join(names),
    )  # fmt: skip
    parser.add_argument(
        "--masked", nargs="+", type=float, default=[0.0, 0.5], help="parts of the labels"
    )
    parser.add_argument("--flush-l2", action="store_true", help="empty the L2 before every call")
    parser.add_argument(
        "--time-limit", type=float, default=540, help="seconds after which no case is begun"
    )
    args = parser.parse_args()
    if args.quick:
        args.rounds = min(args.rounds, _QUICK_ROUNDS)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is found; --device cpu --quick rehearses without one")
    return args


def gpu_clock(device: torch.device, flush: bool) -> Clock:
    """A clock of CUDA events around a call; the queue is empty before it."""
    junk = torch.empty(_FLUSH_BYTES if flush else 0, dtype=torch.uint8, device=device)

    def clock(call: Callable[[], Any]) -> tuple[float, float, Any]:
        junk.zero_()
        began_cpu = time.process_time()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        began.record()
        result = call()
        ended.record()
        torch.cuda.synchronize(device)
        return began.elapsed_time(ended) / 1e3, time.process_time() - began_cpu, result

    return clock


def gpu_memory(call: Call) -> int:
    """Peak bytes of a call beyond inputs and returned gradients, by torch's allocator."""
    device = call.hidden.device
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    base = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    gradients = [x.grad for x in (call.hidden, call.weight) if x.grad is not None]
    returned = sum(x.numel() * x.element_size() for x in gradients)
    return max(0, torch.cuda.max_memory_allocated(device) - base - returned)


def head_case(name: str, args: argparse.Namespace) -> Case:
    """The case of a head, fully trained and unmasked."""
    dim, vocab, softcap = HEADS[name]
    if args.quick:
        return Case(_QUICK_TOKENS, _QUICK_DIM, _QUICK_VOCAB, args.dtype, softcap=softcap)
    return Case(args.tokens, dim, vocab, args.dtype, softcap=softcap)


def run_case(
    peers: tuple[Peer, ...], case: Case, inputs: Inputs, truth: Truth, args: argparse.Namespace
) -> dict[str, Run]:
    """Times, errors and memory of a case, the two rows of GEMMs alone included."""
    device = inputs.hidden.device
    everyone = (*gemm_peers(case, inputs, square_size(args)), *peers)
    limits = Limits(args.rounds, float("inf"), float("inf"))
    if device.type != "cuda":
        return measure(everyone, case, inputs, truth, limits)
    clock = gpu_clock(device, args.flush_l2)
    runs = measure(everyone, case, inputs, truth, limits, clock, _WARM_UPS, gpu_memory)
    torch.cuda.empty_cache()
    return runs


def square_size(args: argparse.Namespace) -> int:
    """Of the GEMM whose rate is the measure."""
    return _QUICK_SQUARE if args.quick else _SQUARE


def main() -> None:
    """Run everything; each case is printed and written as soon as it is measured."""
    args, began = arguments(), time.time()
    if args.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    device = torch.device(args.device)
    peers = selected(GPU_PEERS, args.providers, args.quick)
    facts = machine(device)
    facts |= {"auto": chosen(device, args.dtype), "rounds": args.rounds, "flush_l2": args.flush_l2}
    results: Results = []
    for head in args.heads:
        base = head_case(head, args)
        if time.time() - began > args.time_limit:
            print(f"\nleft out, --time-limit: {head}")
            continue
        inputs = make_inputs(base, device)
        truth = Truth(base, inputs)
        for case in variants(base, tuple(args.masked)):
            if time.time() - began > args.time_limit:
                print(f"\nleft out, --time-limit: {head}, {case.title()}")
                continue
            runs = run_case(peers, case, inputs, truth, args)
            results.append((head, case, runs))
            lines = rows(case, runs, square_size(args))
            print(f"\n{head}: {case.title()}\n\n{table(COLUMNS, lines)}", flush=True)
            written = text(facts, results, peers, square_size(args), time.time() - began)
            if args.output is not None:
                cases = [{"head": h, **as_json(c, r)} for h, c, r in results]
                write(args.output, written, {"machine": facts, "cases": cases})
        del inputs, truth
    if results:
        print(f"\n{summary(results)}")


if __name__ == "__main__":
    main()
