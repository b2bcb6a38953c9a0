"""Rows to tokens, in worker processes: chunks of rows go out, flat arrays come back in order.

The order is that of the rows whatever the number of workers.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ds_train.config.data import LossOn, OverLength
from ds_train.data.chat import render_sample
from ds_train.data.columns import RowFormat
from ds_train.data.encode import TextEncoder
from ds_train.data.examples import SampleFacts
from ds_train.data.formats import convert
from ds_train.data.labelled import content_hash
from ds_train.data.read import Row
from ds_train.data.renderings import ExampleTokeniser, Labels, OneSample
from ds_train.data.sources import Source
from ds_train.data.store_writer import SampleChunk, StoreWriter
from ds_train.data.templates import ChatTemplate
from ds_train.data.types import TokenRow
from ds_train.data.workers import num_cores, run_tasks
from ds_train.errors import DataError

_CHUNK_ROWS = 500
_CHUNK_CHARACTERS = 500_000
_FEW_ROWS = 2_000
"""Less than this is done in the process itself: a worker takes a second to start."""


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """How one source becomes tokens."""

    source: Source
    form: RowFormat
    loss_on: LossOn
    over_length: OverLength
    labels: Labels | None = None
    """How the rows become labelled examples; None where each is rendered once."""
    keeps_examples: bool = False
    """The store shall say which samples render the same example."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker must know."""

    plans: tuple[SourcePlan, ...]
    encoder: TextEncoder
    template: ChatTemplate | None
    max_length: int
    keeps_examples: bool = False
    """The store says which samples render the same example."""


@dataclass(frozen=True, slots=True)
class Result:
    """Samples of one chunk of rows, and what became of the rows (see audit.COUNTS)."""

    source_index: int
    chunk: SampleChunk
    counts: Counter[str]
    answers: set[frozenset[str]]
    """What rows of multiple choice offer: at most two of the different sets of answers."""


class Tokeniser:
    """Turns chunks of rows into chunks of samples."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def run(self, source_index: int, rows: Sequence[Row]) -> Result:
        """Samples of some rows of one source."""
        plan = self.job.plans[source_index]
        counts: Counter[str] = Counter(rows=len(rows))
        answers: set[frozenset[str]] = set()
        if plan.labels is None:
            samples = list(self._plain(plan, rows, counts))
        else:
            tokeniser = ExampleTokeniser(
                plan.source,
                plan.form,
                plan.labels,
                self.job.encoder,
                plan.loss_on,
                plan.over_length,
                self.job.max_length,
            )
            samples, answers = list(tokeniser.run(rows, counts)), tokeniser.answers
        parts = [part for _, part, _ in samples]
        counts["unknown_tokens"] += self._count_unknown(parts)
        chunk = SampleChunk.of(
            [one.ids for one in parts],
            [one.mask for one in parts],
            [one.num_bytes for one in parts],
            [source_index] * len(parts),
            [row.ordinal for row, _, _ in samples],
            [facts for _, _, facts in samples] if self.job.keeps_examples else None,
        )
        return Result(source_index, chunk, counts, answers)

    def _plain(
        self, plan: SourcePlan, rows: Sequence[Row], counts: Counter[str]
    ) -> Iterator[OneSample]:
        """Samples of rows that are rendered once."""
        rendered = [
            render_sample(
                convert(row, plan.source, plan.form), plan.loss_on, self.job.template, row.place
            )
            for row in rows
        ]
        for row, whole in zip(rows, self.job.encoder.encode(rendered), strict=True):
            fitting = self._fit(plan, row, whole, counts)
            kept = [one for one in fitting if one.mask[1:].any()]
            if not kept:
                counts["dropped_unsupervised"] += bool(fitting)
            elif len(kept) < len(fitting):
                counts["pieces_unsupervised"] += len(fitting) - len(kept)
            counts["boundary_tokens"] += whole.boundary_tokens if kept else 0
            facts = SampleFacts(content_hash(row, plan.form) if self.job.keeps_examples else 0)
            for one in kept:
                yield row, one, facts

    def _fit(
        self, plan: SourcePlan, row: Row, whole: TokenRow, counts: Counter[str]
    ) -> list[TokenRow]:
        """The row, or what the over-length policy makes of it.

        Pieces of a split row overlap by one token, the last of a piece being the first of the
        next: it is context there, so each token of the row is still learned exactly once.
        """
        limit, length = self.job.max_length, len(whole.ids)
        if length <= limit:
            return [whole]
        if plan.over_length == "error":
            raise DataError(
                f"{row.place} has {length:,} tokens, but data.max_length = {limit:,}; "
                "raise it, or set data.over_length to drop, truncate or split."
            )
        if plan.over_length == "drop":
            counts["dropped_too_long"] += 1
            counts["dropped_tokens"] += length
            return []
        if plan.over_length == "truncate":
            counts["truncated"] += 1
            counts["dropped_tokens"] += length - limit
            return [whole.part(slice(limit))]
        starts = range(0, length - 1, limit - 1)
        counts["split"] += 1
        counts["split_pieces"] += len(starts)
        return [whole.part(slice(start, start + limit)) for start in starts]

    def _count_unknown(self, rows: Iterable[TokenRow]) -> int:
        unknown = self.job.encoder.unk_id
        if unknown is None or unknown == self.job.encoder.eos_id:  # GPT-2 uses one token for both
            return 0
        return sum(int(np.count_nonzero(row.ids == unknown)) for row in rows)


def tokenise_sources(
    job: Job,
    streams: Sequence[Iterable[Row]],
    writer: StoreWriter,
    num_workers: int | None = None,
) -> tuple[list[Counter[str]], list[set[frozenset[str]]]]:
    """Writes all samples of all sources, in order.

    Gives the counts of each source, and the different sets of answers that its rows offer (see
    Result; more than one means that they differ).
    """
    counts: list[Counter[str]] = [Counter() for _ in streams]
    answers: list[set[frozenset[str]]] = [set() for _ in streams]
    chunks = _chunks(streams)
    first = list(_first_rows(chunks, _FEW_ROWS))
    num_rows = sum(len(rows) for _, rows in first)
    num_workers = 1 if num_rows < _FEW_ROWS else (num_workers or num_cores())
    chunks = itertools.chain(first, chunks)
    results = run_tasks(Tokeniser, (job,), chunks, num_workers, doing="tokenising")
    hidden = not sys.stderr.isatty()
    with tqdm(desc="tokenising", unit=" rows", file=sys.stderr, disable=hidden) as bar:
        for result in results:
            writer.append(result.chunk)
            counts[result.source_index].update(result.counts)
            answers[result.source_index] |= result.answers
            bar.update(result.counts["rows"])
    return counts, answers


def _chunks(streams: Sequence[Iterable[Row]]) -> Iterator[tuple[int, list[Row]]]:
    """(source index, rows) with a bounded number of rows and of characters."""
    for index, stream in enumerate(streams):
        rows: list[Row] = []
        size = 0
        for row in stream:
            rows.append(row)
            size += row.size
            if len(rows) == _CHUNK_ROWS or size >= _CHUNK_CHARACTERS:
                yield index, rows
                rows, size = [], 0
        if rows:
            yield index, rows


def _first_rows(
    chunks: Iterator[tuple[int, list[Row]]], num_rows: int
) -> Iterator[tuple[int, list[Row]]]:
    """Chunks until they hold `num_rows` rows."""
    seen = 0
    while seen < num_rows and (chunk := next(chunks, None)) is not None:
        seen += len(chunk[1])
        yield chunk
