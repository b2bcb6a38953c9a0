"""How one optimizer step is made of ranks, rows and micro-batches.

2 processes x 4 rows x 4 micro-batches = 32 rows per step

Processes that share rows (engine.sequence_parallel_size) count as one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """The numbers of one optimizer step; global = dp_size x micro x accumulation - empty."""

    global_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    world_size: int
    sequence_parallel_size: int = 1
    """Ranks that share each row."""
    num_empty_rows: int = 0
    """Where the global batch does not divide (train.allow_empty_rows)."""

    @property
    def dp_size(self) -> int:
        """Ranks, or groups of ranks, that hold different rows."""
        return self.world_size // self.sequence_parallel_size

    def __str__(self) -> str:
        """The sum in words."""
        parts = (
            _holders(self.dp_size, self.sequence_parallel_size),
            _count(self.micro_batch_size, "row", "rows"),
            _count(self.accumulation_steps, "micro-batch", "micro-batches"),
        )
        rows = _count(self.global_batch_size, "row", "rows")
        if self.num_empty_rows:
            rows = f"{rows} and {self.num_empty_rows:,} empty"
        return f"{' x '.join(parts)} = {rows} per step"


def batch_arithmetic(config: RunConfig, world_size: int) -> BatchPlan:
    """Accumulation from the global batch, or the global batch from the accumulation.

    Raises ConfigError with the nearest sizes that divide.
    """
    train, share = config.train, config.engine.sequence_parallel_size
    micro = train.per_device_train_batch_size
    dp_size, rest = divmod(world_size, share)
    if rest:
        raise ConfigError(shares_unevenly(share, world_size))
    if train.global_batch_size is None:
        steps = train.gradient_accumulation_steps or 1
        return BatchPlan(dp_size * micro * steps, micro, steps, world_size, share)
    per_round = dp_size * micro
    if train.global_batch_size % per_round and not train.allow_empty_rows:
        raise ConfigError(_does_not_divide(train.global_batch_size, micro, dp_size, share))
    num_empty = -train.global_batch_size % per_round
    steps = (train.global_batch_size + num_empty) // per_round
    return BatchPlan(train.global_batch_size, micro, steps, world_size, share, num_empty)


def shares_unevenly(share: int, world_size: int) -> str:
    """The fault of ranks that can't be grouped."""
    fitting = [size for size in range(1, world_size + 1) if world_size % size == 0]
    sizes = " or ".join(str(size) for size in fitting[-3:])
    return (
        f"engine.sequence_parallel_size = {share} must divide the "
        f"{_count(world_size, 'process', 'processes')}; set it to {sizes}, or start another "
        f"number of processes."
    )


def _does_not_divide(global_batch: int, micro: int, dp_size: int, share: int) -> str:
    unit = dp_size * micro
    holders = _holders(dp_size, share)
    message = (
        f"train.global_batch_size = {global_batch:,} does not divide into {holders} x "
        f"{_count(micro, 'row', 'rows')} = {unit:,}. "
    )
    below, above = global_batch // unit * unit, (global_batch // unit + 1) * unit
    nearest = f"{below:,} or {above:,}" if below else f"{above:,}"
    message += f"Nearest that do: {nearest}"
    if fitting := _nearest_micro(global_batch, micro, dp_size):
        sizes = " or ".join(str(size) for size in fitting)
        return f"{message}; or set train.per_device_train_batch_size to {sizes}."
    empty = _count(-global_batch % unit, "row", "rows")
    return (
        f"{message}; no per_device_train_batch_size divides it over {holders}. Or set "
        f"train.allow_empty_rows, which adds {empty} without content to each step."
    )


def _nearest_micro(global_batch: int, micro: int, dp_size: int) -> list[int]:
    """The nearest smaller and larger micro-batch that divide the global batch."""
    rows, rest = divmod(global_batch, dp_size)
    if rest:
        return []
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]
    below = [size for size in sizes if size < micro][-1:]
    return below + [size for size in sizes if size > micro][:1]


def _holders(dp_size: int, share: int) -> str:
    """Who holds different rows."""
    if share == 1:
        return _count(dp_size, "process", "processes")
    return f"{_count(dp_size, 'group', 'groups')} of {share} processes that share rows"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
