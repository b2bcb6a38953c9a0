"""`ds-train evaluate TARGET --text FILE...`: bits per byte, per token, perplexity of any text."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from ds_train.engine.ranks import Ranks
from ds_train.errors import ConfigError, DataError, InputError, quoted
from ds_train.evaluate.model import find_target
from ds_train.evaluate.scored_target import (
    ScoredTarget,
    check_output,
    here_or_in_processes,
    open_scorer,
    say_on_stderr,
    silent,
)
from ds_train.evaluate.text import read_texts, score_texts

_COLUMNS = {
    "num_tokens": "tokens",
    "num_bytes": "bytes",
    "bits_per_byte": "bits per byte",
    "bits_per_token": "bits per token",
    "perplexity": "perplexity",
    "word_perplexity": "per word",
}


def evaluate_text_command(
    target: ScoredTarget,
    paths: Sequence[str],
    *,
    max_length: int | None,
    processes: int | None,
    arguments: Sequence[str],
    is_rank: bool,
    output: str | Path | None = None,
) -> int:
    """Measure here, or in processes of their own; prints a table and returns the exit code.

    Args:
        max_length: tokens of a window; those that the model reads when None.
        processes, arguments, is_rank: see `here_or_in_processes`.
        output: a JSON file for the numbers.

    Raises:
        DataError: a file that can't be read; ConfigError: a window that the model can't read;
        ModelError: no such model.
    """
    if output is not None and not is_rank:
        check_output(Path(output))
    texts = read_texts(paths)

    def check() -> None:
        find_target(target.target, target.checkpoint, target.base)

    def work(ranks: Ranks) -> None:
        result = _measure(target, paths, texts, max_length, ranks)
        if ranks.is_main:
            print(_table(result))
            if output is not None:
                _write(Path(output), result)

    return here_or_in_processes(
        work, check, target, processes=processes, arguments=arguments, is_rank=is_rank
    )


def _measure(
    target: ScoredTarget,
    paths: Sequence[str],
    texts: Sequence[str],
    max_length: int | None,
    ranks: Ranks,
) -> dict[str, Any]:
    say = say_on_stderr if ranks.is_main else silent
    found = find_target(target.target, target.checkpoint, target.base)
    scorer, tokenizer = open_scorer(found, target, ranks, say)
    if max_length is not None:
        if max_length > scorer.max_length:
            raise ConfigError(
                f"--max-length {max_length:,}: {found.title} reads at most "
                f"{scorer.max_length:,} tokens."
            )
        scorer.max_length = max_length
    began = time.monotonic()
    try:
        scores = score_texts(scorer, tokenizer, texts, progress="evaluate")
    except DataError as error:
        raise DataError([f"--text: {fault}" for fault in error.faults]) from None
    whole = reduce(add, scores)
    if whole.num_unknown:
        say(
            f"text: {whole.num_unknown:,} of {whole.num_tokens:,} tokens are unknown to the "
            "tokenizer; what they stand for costs less than it should"
        )
    return {
        "target": found.title,
        "dtype": target.dtype or found.model.dtype,
        "max_length": scorer.max_length,
        "processes": ranks.world_size,
        "seconds": round(time.monotonic() - began, 3),
        "texts": {str(path): one.numbers() for path, one in zip(paths, scores, strict=True)},
        "all": whole.numbers(),
    }


def _table(result: dict[str, Any]) -> str:
    """A line for each file, and one for all of them."""
    rows = list(result["texts"].items())
    if len(rows) > 1:
        rows.append(("all", result["all"]))
    lines = [("", *_COLUMNS.values())]
    lines += [(name, *(_number(numbers[key]) for key in _COLUMNS)) for name, numbers in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [f"{result['target']}, windows of {result['max_length']:,} tokens"]
    for name, *cells in lines:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        text.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(text)


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if value < 1e5 else f"{value:.4g}"


def _write(path: Path, result: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {quoted(path)}: can't be written: {error.strerror}.") from None
