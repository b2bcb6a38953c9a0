"""Rows that grow (`curriculum.seq_len`) where they can't, or would not."""

from __future__ import annotations

from collections.abc import Iterator

from ds_train.config.adapter import VIRTUAL_TOKEN_METHODS
from ds_train.config.run import RunConfig
from ds_train.plan.rules_curriculum import after_the_end


def seq_len_rules(config: RunConfig) -> Iterator[str]:
    """Faults of `curriculum.seq_len` with the rest of the recipe."""
    if config.curriculum is None or config.curriculum.seq_len is None:
        return
    seq_len, longest = config.curriculum.seq_len, config.data.max_length
    end, place = seq_len.end or longest, "curriculum.seq_len"
    if end > longest:
        yield (
            f"{place}.end = {end:,}: no row is longer than data.max_length = {longest:,}; lower "
            "the one or raise the other."
        )
    elif seq_len.start >= end:
        of = f"{place}.end" if seq_len.end else "data.max_length"
        yield (
            f"{place}.start = {seq_len.start:,}: must be less than {of} = {end:,}, up to which "
            "rows grow; a lower start, or no seq_len."
        )
    elif seq_len.step > end - seq_len.start:
        yield (
            f"{place}.step = {seq_len.step:,}: from {seq_len.start:,} to {end:,} there is no "
            f"such step; {end - seq_len.start:,} or less."
        )
    if seq_len.start < 2:
        yield f"{place}.start = 1: a row needs 2 tokens, one to read and one to predict."
    yield from after_the_end(config, f"{place}.end_at", seq_len.end_at)
    method = config.adapter.method
    if seq_len.mode == "window" and method in VIRTUAL_TOKEN_METHODS:
        yield (
            f"{place}.mode = window with adapter.method = {method}: windows are made by positions "
            "that begin anew, and PEFT numbers them itself after virtual tokens; set mode: reshape "
            "or truncate."
        )
