"""A real all-reduce, and every pair of hosts by itself. Runs as a rank, started by host_ranks.py.

usage: python -m ds_train.doctor.allreduce JOIN_SECONDS    with RANK, WORLD_SIZE and so on

One line `@@ds-train-allreduce {...}` from rank 0 says it all; each rank says `joined` first, so
that those that never come can be named. torch only: importing deepspeed would be most of the time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ds_train.doctor.collective import MARK, SLOW

SIZES = (8, 1 << 12, 1 << 16, 1 << 20, 1 << 23, 1 << 26)
"""Bytes, from what latency decides to what bandwidth decides."""
PAIR_BYTES = 1 << 19
_QUICK_SECONDS = 0.02
Pair = tuple[int, int]
"""Places of two hosts, the lower one first."""
BUDGET_SECONDS = 6.0
"""For all sizes together: a slow network is not asked for its largest ones."""


def main() -> None:
    """Measure, and print the result on rank 0."""
    join_seconds = float(sys.argv[1])
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    say({"joined": rank, "host": int(os.environ.get("CROSS_RANK", 0))})
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=join_seconds))
    leaders = _leaders(world_size, device)
    ring = [measure(size, device) for size in _sizes(device)]
    pairs = measure_pairs(leaders, rank, device)
    if rank == 0:
        say({"world_size": world_size, "backend": backend, "ring": ring, "pairs": pairs})
    dist.barrier()
    dist.destroy_process_group()


def say(what: dict[str, Any]) -> None:
    """One line, in one write, so that lines of several ranks do not mix."""
    os.write(1, (MARK + json.dumps(what) + "\n").encode())


def _sizes(device: torch.device) -> Any:
    """Sizes as long as there is time, the same for every rank."""
    spent = 0.0
    for size in SIZES:
        began = time.perf_counter()
        yield size
        spent += time.perf_counter() - began
        # the next size takes up to sixteen times as long
        over = torch.tensor([spent * 16 > BUDGET_SECONDS], dtype=torch.int32, device=device)
        dist.all_reduce(over)
        if int(over):
            return


def measure(num_bytes: int, device: torch.device) -> dict[str, float]:
    """All-reduce of one size: the best of a few, as seen by this rank.

    The bus bandwidth is what each rank's link carries: 2 (n-1) / n of the bytes.
    """
    tensor = torch.zeros(num_bytes // 4, dtype=torch.float32, device=device)
    best = min(_timed(lambda: dist.all_reduce(tensor), device) for _ in range(4))
    world_size = dist.get_world_size()
    share = 2 * (world_size - 1) / world_size
    return {"bytes": num_bytes, "seconds": best, "bus_bytes_per_second": share * num_bytes / best}


def _timed(do: Any, device: torch.device) -> float:
    dist.barrier()
    began = time.perf_counter()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _leaders(world_size: int, device: torch.device) -> list[int]:
    """The first rank of every host, in order."""
    host = torch.tensor([int(os.environ.get("CROSS_RANK", 0))], device=device)
    hosts = [torch.zeros_like(host) for _ in range(world_size)]
    dist.all_gather(hosts, host)
    numbers = [int(one) for one in hosts]
    return [numbers.index(number) for number in sorted(set(numbers))]


def measure_pairs(leaders: list[int], rank: int, device: torch.device) -> list[dict[str, float]]:
    """Bandwidth between every two hosts, one way, rounds of disjoint pairs at the same time.

    Pairs that seem slow are looked at again, with fewer others beside them: hosts, or a switch, may
    have been busy for a moment.

    Returns [{"a": host, "b": host, "bytes_per_second": slower of both ways}], whole on every rank.
    """
    num = len(leaders)
    everyone = [(a, b) for a in range(num) for b in range(a + 1, num)]
    seconds = _pair_seconds(dict.fromkeys(everyone, 3), leaders, rank, device)
    for look in range(10):
        if not (times := look_again(seconds, look)):
            break
        again = _pair_seconds(times, leaders, rank, device)
        seconds |= {pair: min(seconds[pair], again[pair]) for pair in again}
    return [
        {"a": a, "b": b, "bytes_per_second": 2 * PAIR_BYTES / seconds[a, b]} for a, b in everyone
    ]


def look_again(seconds: Mapping[Pair, float], look: int) -> dict[Pair, int]:
    """Pairs that seem slow -> how often to measure them in further look number `look`, from 0.

    Those that take long are looked at twice more, once each; the others, which single wakings of
    their processes can slow down, as long as there are looks.
    """
    best = min(seconds.values(), default=0.0)
    return {
        pair: 10 if taken < _QUICK_SECONDS else 1
        for pair, taken in seconds.items()
        if taken > SLOW * best and (look < 2 or taken < _QUICK_SECONDS)
    }


def _pair_seconds(
    times: Mapping[Pair, int], leaders: list[int], rank: int, device: torch.device
) -> dict[Pair, float]:
    """Seconds of each pair for a message there and one back, the best of so many times; whole on
    every rank."""
    num = len(leaders)
    seconds = torch.zeros(num, num, dtype=torch.float64, device=device)
    for round_pairs in rounds(num):
        played = [pair for pair in round_pairs if pair in times]
        for a, b in played:
            if rank in (leaders[a], leaders[b]):
                peer = leaders[b] if rank == leaders[a] else leaders[a]
                taken = _both_ways(peer, rank < peer, times[a, b], device)
                seconds[a, b] = taken if rank == leaders[a] else 0.0
        if played:
            dist.barrier()
    dist.all_reduce(seconds)
    return {(a, b): float(seconds[a, b]) for a, b in times}


def rounds(num: int) -> list[list[tuple[int, int]]]:
    """A tournament: every pair (a < b) once, in rounds in which nobody plays twice."""
    players = list(range(num + num % 2))  # the last one of an odd number rests its opponent
    found = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        found.append([(min(p), max(p)) for p in pairs if max(p) < num])
        players = [players[0], players[-1], *players[1:-1]]
    return found


def _both_ways(peer: int, first: bool, times: int, device: torch.device) -> float:
    """Seconds for one message there and one back: the best of some times."""
    tensor = torch.zeros(PAIR_BYTES, dtype=torch.uint8, device=device)
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        for sends in (first, not first):
            if sends:
                dist.send(tensor, peer)
            else:
                dist.recv(tensor, peer)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


if __name__ == "__main__":
    main()
