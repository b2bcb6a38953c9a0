"""`ds-train data`: the audit, then rows as they are trained on, with what is learned marked.

    Question: 2 + 3?
    Answer:« 5</s>»          without colour; in a terminal the learned part is green

`--step N` shows every row of step N: which rank and micro-batch takes it, and its samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from ds_train.config.run import RunConfig
from ds_train.curriculum.plan import build_step_plan, find_scores
from ds_train.data.audit import format_audit
from ds_train.data.encode import open_tokenizer
from ds_train.data.prepare import PreparedData, prepare_data
from ds_train.data.share import share_of_rank
from ds_train.errors import DataError
from ds_train.launch.world import find_world
from ds_train.plan.batch import BatchPlan, batch_arithmetic

_GREEN, _DIM, _RESET = "\x1b[32m", "\x1b[2m", "\x1b[0m"
Say = Callable[[str], object]


def show_data(
    config: RunConfig,
    step: int | None = None,
    rows: int = 3,
    color: bool = False,
    *,
    as_json: bool = False,
    say: Say = print,
) -> None:
    """Says the audit and the first `rows` samples, or exactly what `step` trains on.

    `as_json` says one JSON object instead, with ids and masks, and nothing else.
    """
    prepared = prepare_data(config, say=_silent if as_json else say)
    tokenizer = open_tokenizer(config.model)
    facts: dict[str, Any]
    if step is None:
        facts = {"samples": list(_first_samples(prepared, tokenizer, rows))}
    else:
        facts = {"step": describe_step(config, prepared, tokenizer, step)}
    if as_json:
        say(json.dumps({"audit": prepared.audit} | facts, ensure_ascii=False))
        return
    say(format_audit(prepared.audit))
    for sample in facts.get("samples", []):
        _say_sample(sample, color, say, indent="")
    if step is not None:
        _say_step(facts["step"], color, say)


def _silent(text: str) -> None:
    """Says nothing: the JSON stands alone."""


def _first_samples(
    prepared: PreparedData, tokenizer: Any, num_samples: int
) -> Iterable[dict[str, Any]]:
    for index in range(min(num_samples, prepared.train.num_samples)):
        yield describe_sample(prepared, tokenizer, index)


def describe_sample(prepared: PreparedData, tokenizer: Any, index: int) -> dict[str, Any]:
    """Sample `index` of the training part: where it is from, its ids, mask and texts."""
    store = prepared.train
    ids, mask = store.tokens(index), store.mask(index)
    return {
        "sample": int(index),
        "source": prepared.source_names[store.sources[index]],
        "source_row": int(store.ordinals[index]),
        "tokens": len(ids),
        "supervised_tokens": int(store.supervised[index]),
        "ids": ids.tolist(),
        "mask": mask.astype(int).tolist(),
        "segments": [
            {"text": text, "learned": learned} for text, learned in segments(tokenizer, ids, mask)
        ],
    }


def segments(tokenizer: Any, ids: np.ndarray, mask: np.ndarray) -> list[tuple[str, bool]]:
    """(text, learned) of every stretch of tokens with equal mask; together the whole text.

    Each stretch is what the decoder adds to the text so far, since a token alone may decode
    otherwise than after another one (spaces, parts of characters).
    """
    borders = [0, *(np.flatnonzero(np.diff(mask.astype(np.int8))) + 1).tolist(), len(ids)]
    texts = [tokenizer.decode(ids[:border].tolist()) for border in borders]
    found = []
    for (start, end), (before, through) in zip(pairwise(borders), pairwise(texts), strict=True):
        whole = through.startswith(before)
        text = through[len(before) :] if whole else tokenizer.decode(ids[start:end].tolist())
        found.append((text, bool(mask[start])))
    return found


def describe_step(
    config: RunConfig, prepared: PreparedData, tokenizer: Any, step: int
) -> dict[str, Any]:
    """Everything that optimizer step `step` (the first is 1) trains on, rank by rank."""
    batch = batch_arithmetic(config, find_world(config.cluster).world_size)
    plan = build_step_plan(config, prepared, find_scores(config, prepared), batch.global_batch_size)
    total = plan.total_steps(config.train)
    if not 1 <= step <= total:
        raise DataError(f"--step {step}: the run has steps 1 to {total:,}; name one of them.")
    index = step - 1
    return {
        "step": step,
        "total_steps": total,
        "batch": str(batch),
        "epoch": plan.epoch(index),
        "tokens": plan.num_tokens(index),
        "supervised_tokens": plan.num_supervised(index),
        "ranks": [
            _describe_rank(config, prepared, tokenizer, plan.rows(index), batch, rank)
            for rank in range(batch.world_size)
        ],
    }


def _describe_rank(
    config: RunConfig,
    prepared: PreparedData,
    tokenizer: Any,
    step_rows: list[Any],
    batch: BatchPlan,
    rank: int,
) -> list[list[list[dict[str, Any]]]]:
    """Micro-batches of a rank, each a list of rows, each a list of samples."""
    share = share_of_rank(
        prepared.train,
        step_rows,
        rank=rank,
        dp_size=batch.world_size,
        micro_batch_size=batch.micro_batch_size,
        packing=config.data.packing,
    )
    return [
        [[describe_sample(prepared, tokenizer, int(one)) for one in row] for row in micro_batch]
        for micro_batch in share
    ]


def _say_step(facts: dict[str, Any], color: bool, say: Say) -> None:
    say(
        f"\nstep {facts['step']:,} of {facts['total_steps']:,}, epoch {facts['epoch']:.3f}: "
        f"{facts['batch']}; {facts['tokens']:,} tokens, "
        f"{facts['supervised_tokens']:,} learned from"
    )
    for rank, micro_batches in enumerate(facts["ranks"]):
        for number, rows in enumerate(micro_batches):
            for position, row in enumerate(rows):
                what = f"{sum(one['tokens'] for one in row):,} tokens" if row else "empty"
                say(f"\nrank {rank}, micro-batch {number}, row {position}: {what}")
                for sample in row:
                    _say_sample(sample, color, say, indent="  ")


def _say_sample(sample: dict[str, Any], color: bool, say: Say, indent: str) -> None:
    head = (
        f"sample {sample['sample']:,} ({sample['source']}, row {sample['source_row'] + 1:,}): "
        f"{sample['tokens']:,} tokens, {sample['supervised_tokens']:,} learned from"
    )
    text = "".join(_mark(one["text"], one["learned"], color) for one in sample["segments"])
    say(f"{indent}{_DIM}{head}{_RESET}" if color else f"{indent}{head}")
    say("\n".join(f"{indent}  {line}" for line in text.split("\n")))


def _mark(text: str, learned: bool, color: bool) -> str:
    if not learned:
        return text
    if not color:
        return f"«{text}»"
    # Each line anew, so that the colour survives a pager and the indentation.
    return "\n".join(f"{_GREEN}{line}{_RESET}" for line in text.split("\n"))
