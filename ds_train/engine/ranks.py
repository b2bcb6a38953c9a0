"""Who this process is among the others, and the few collectives that we call ourselves."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ds_train.launch.marks import gate


@dataclass(frozen=True)
class Ranks:
    """This process's place. Neighbouring ranks may share rows; the others hold different ones."""

    rank: int
    local_rank: int
    world_size: int
    sequence_parallel_size: int = 1
    """Ranks that share each row."""

    @classmethod
    def from_environment(cls) -> Ranks:
        """What the launcher has set; a process of its own is rank 0 of 1."""
        environment = os.environ
        return cls(
            rank=int(environment.get("RANK", 0)),
            local_rank=int(environment.get("LOCAL_RANK", 0)),
            world_size=int(environment.get("WORLD_SIZE", 1)),
        )

    @property
    def dp_size(self) -> int:
        """Ranks, or groups of ranks, that hold different rows."""
        return self.world_size // self.sequence_parallel_size

    @property
    def dp_rank(self) -> int:
        """Which of these this rank belongs to."""
        return self.rank // self.sequence_parallel_size

    @property
    def sequence_rank(self) -> int:
        """Which part of its rows this rank holds."""
        return self.rank % self.sequence_parallel_size

    @property
    def is_main(self) -> bool:
        """Rank 0 writes and speaks for all."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The accelerator of this rank, or the CPU."""
        if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
            return torch.device("cuda", self.local_rank)
        return torch.device("cpu")

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over all ranks; a new tensor where `values` lay."""
        gate()
        result = values.to(self.device, copy=True)
        if self.world_size > 1:
            dist.all_reduce(result)
        return result.to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether it is set on some rank; collective."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def texts(self, text: str) -> list[str]:
        """Every rank's text, in the order of ranks."""
        gate()
        texts = [text]
        if self.world_size > 1:
            texts = [""] * self.world_size
            dist.all_gather_object(texts, text)
        return texts

    def first_text(self, text: str) -> str:
        """The first rank's text that is not empty; the same answer everywhere."""
        return next((found for found in self.texts(text) if found), "")

    def barrier(self) -> None:
        """Wait for every rank."""
        gate()
        if self.world_size > 1:
            dist.barrier()


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory so far: allocated on the GPU, or resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
