"""Combinations of rows that several ranks share (engine.sequence_parallel_size) that can't work."""

from __future__ import annotations

from collections.abc import Iterator

from ds_train.config.adapter import VIRTUAL_TOKEN_METHODS
from ds_train.config.run import RunConfig


def sharing_rules(config: RunConfig) -> Iterator[str]:
    """Faults of recipes whose rows have parts on several ranks."""
    size = config.engine.sequence_parallel_size
    if size == 1:
        return
    name = f"engine.sequence_parallel_size = {size}"
    remedy = "set engine.sequence_parallel_size: 1"
    method, attention = config.adapter.method, config.model.attn_implementation
    if method in VIRTUAL_TOKEN_METHODS:
        yield (
            f"{name} with adapter.method = {method}: every rank would put the virtual tokens "
            f"before its own part of a row; set adapter.method: lora, or {remedy}."
        )
    if config.fewshot is not None and config.fewshot.losses is not None:
        yield (
            f"{name} with fewshot.losses: the log-probability of a candidate answer would have "
            f"its tokens on several ranks; {remedy}, or remove fewshot.losses."
        )
    if config.curriculum is not None and config.curriculum.refresh_at:
        yield (
            f"{name} with curriculum.refresh_at: the samples are scored in rows that one rank "
            f"holds whole; {remedy}, or remove curriculum.refresh_at."
        )
    if attention is not None and attention != "sdpa" and "flash" not in attention:
        yield (
            f"{name} with model.attn_implementation = {attention}: it needs a mask of all "
            f"positions, which no rank holds; set model.attn_implementation: sdpa, or {remedy}."
        )


def heads_fault(num_heads: int, size: int) -> str | None:
    """The message where a model's attention heads can't be shared out; None where they can."""
    if num_heads % size == 0:
        return None
    fitting = [str(one) for one in range(1, num_heads + 1) if num_heads % one == 0]
    return (
        f"engine.sequence_parallel_size = {size} must divide the model's {num_heads} attention "
        f"heads, which the ranks share out; sizes that do: {', '.join(fitting)}."
    )
