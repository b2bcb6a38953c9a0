"""What `ds-train score` tells of a difficulty: its spread, its ends, how fast it was computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ds_train.curriculum.metrics.texts import TextDecoder
from ds_train.curriculum.score_files import StoredScores
from ds_train.data.divide import PreparedData
from ds_train.data.store import TokenStore
from ds_train.errors import shorten

_SAMPLED = 1_000
_SHOWN_CHARACTERS = 300
_SHORTEST_SECONDS = 0.01
"""Less time than this tells nothing about speed."""


def summarise(
    stored: StoredScores, prepared: PreparedData, decoder: TextDecoder, bytes_per_token: float
) -> dict[str, Any]:
    """The numbers of one metric, and the samples at its two ends.

    `ties` counts the samples whose value another one has too; `megabytes_per_second` is of UTF-8
    text, whose size is known from a part of the samples (`text_bytes_per_token`).
    """
    values, train = stored.values, prepared.train
    _, counts = np.unique(values, return_counts=True)
    seconds = stored.facts["seconds"]
    megabytes = train.num_tokens * bytes_per_token / 1e6
    return {
        "metric": stored.facts["metric"],
        "min": float(values.min()),
        "deciles": _quantiles(values),
        "max": float(values.max()),
        "num_samples": len(values),
        "ties": int(counts[counts > 1].sum()),
        "seconds": seconds,
        "megabytes_per_second": megabytes / seconds if seconds >= _SHORTEST_SECONDS else None,
        "easiest": _describe(int(np.argmin(values)), values, prepared, decoder),
        "hardest": _describe(int(np.argmax(values)), values, prepared, decoder),
        "path": str(stored.path),
    }


def _quantiles(values: NDArray[np.float32]) -> list[float]:
    """The nine deciles between least and greatest, each a value that a sample has."""
    tenths = np.arange(1, 10) / 10
    return [float(one) for one in np.quantile(values, tenths, method="inverted_cdf")]


def _describe(
    index: int, values: NDArray[np.float32], prepared: PreparedData, decoder: TextDecoder
) -> dict[str, Any]:
    train = prepared.train
    return {
        "difficulty": float(values[index]),
        "sample": index,
        "source": prepared.source_names[train.sources[index]],
        "source_row": int(train.ordinals[index]),
        "tokens": int(train.lengths[index]),
        "text": decoder.decode([train.tokens(index).tolist()])[0],
    }


def text_bytes_per_token(train: TokenStore, decoder: TextDecoder) -> float:
    """UTF-8 bytes of text per token, of at most 1,000 samples that lie evenly in the data."""
    chosen = np.unique(np.linspace(0, train.num_samples - 1, _SAMPLED).astype(np.int64))
    texts = decoder.decode([train.tokens(index).tolist() for index in chosen.tolist()])
    num_tokens = int(train.lengths[chosen].sum(dtype=np.int64))
    return sum(len(text.encode()) for text in texts) / num_tokens


def format_summaries(summaries: list[dict[str, Any]]) -> str:
    """A table with a line a metric, then the ends of each."""
    head = ["metric", "min", *(f"{10 * n} %" for n in range(1, 10)), "max"]
    table = [[*head, "ties", "seconds", "MB/s"]]
    for one in summaries:
        numbers = [f"{value:.4g}" for value in (one["min"], *one["deciles"], one["max"])]
        speed = one["megabytes_per_second"]
        cost = [f"{one['ties']:,}", f"{one['seconds']:.2f}", _format_speed(speed)]
        table.append([one["metric"], *numbers, *cost])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join([line[0].ljust(widths[0]), *_right(line, widths)]) for line in table]
    for one in summaries:
        lines += ["", f"{one['metric']}: {one['path']}"]
        lines += [_format_end(one, end) for end in ("easiest", "hardest")]
    return "\n".join(lines)


def _format_speed(speed: float | None) -> str:
    if speed is None:
        return "-"
    return f"{speed:,.1f}" if speed >= 1 else f"{speed:.2g}"


def _right(line: list[str], widths: list[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]


def _format_end(summary: dict[str, Any], end: str) -> str:
    one = summary[end]
    text = shorten(one["text"], _SHOWN_CHARACTERS)
    shown = "\n".join(f"    {line}" for line in text.split("\n"))
    place = f"{one['source']}, row {one['source_row'] + 1:,}, {one['tokens']:,} tokens"
    return f"  {end} ({one['difficulty']:.4g}; {place})\n{shown}"
