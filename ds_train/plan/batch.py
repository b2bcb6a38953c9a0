"""How one optimizer step is made of ranks, rows and micro-batches.

2 processes x 4 rows x 4 micro-batches = 32 rows per step
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """The numbers of one optimizer step; global = world x micro x accumulation."""

    global_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    world_size: int

    def __str__(self) -> str:
        """The sum in words."""
        parts = (
            _count(self.world_size, "process", "processes"),
            _count(self.micro_batch_size, "row", "rows"),
            _count(self.accumulation_steps, "micro-batch", "micro-batches"),
        )
        return f"{' x '.join(parts)} = {_count(self.global_batch_size, 'row', 'rows')} per step"


def batch_arithmetic(config: RunConfig, world_size: int) -> BatchPlan:
    """Accumulation from the global batch, or the global batch from the accumulation.

    Raises ConfigError with the nearest sizes that divide.
    """
    train = config.train
    micro = train.per_device_train_batch_size
    if train.global_batch_size is None:
        steps = train.gradient_accumulation_steps or 1
        return BatchPlan(world_size * micro * steps, micro, steps, world_size)
    steps, rest = divmod(train.global_batch_size, world_size * micro)
    if rest:
        raise ConfigError(_does_not_divide(train.global_batch_size, micro, world_size))
    return BatchPlan(train.global_batch_size, micro, steps, world_size)


def _does_not_divide(global_batch: int, micro: int, world_size: int) -> str:
    unit = world_size * micro
    processes = _count(world_size, "process", "processes")
    message = (
        f"train.global_batch_size = {global_batch:,} does not divide into {processes} x "
        f"{_count(micro, 'row', 'rows')} = {unit:,}. "
    )
    below, above = global_batch // unit * unit, (global_batch // unit + 1) * unit
    nearest = f"{below:,} or {above:,}" if below else f"{above:,}"
    message += f"Nearest that do: {nearest}"
    if fitting := _nearest_micro(global_batch, micro, world_size):
        sizes = " or ".join(str(size) for size in fitting)
        return f"{message}; or set train.per_device_train_batch_size to {sizes}."
    return f"{message}; no per_device_train_batch_size divides it over {processes}."


def _nearest_micro(global_batch: int, micro: int, world_size: int) -> list[int]:
    """The nearest smaller and larger micro-batch that divide the global batch."""
    rows, rest = divmod(global_batch, world_size)
    if rest:
        return []
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]
    below = [size for size in sizes if size < micro][-1:]
    return below + [size for size in sizes if size > micro][:1]


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
