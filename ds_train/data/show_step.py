"""What `ds-train data` shows, as facts: a sample with its texts, and all rows of one step."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ds_train.config.run import RunConfig
from ds_train.curriculum.plan import build_step_plan, find_scores
from ds_train.curriculum.refresh import add_known_refreshes, segments_of
from ds_train.curriculum.scores import DifficultyScores
from ds_train.data.divide import PreparedData
from ds_train.data.epochs import Drawn
from ds_train.data.mix import Ints
from ds_train.data.order import StepPlan
from ds_train.data.parts import is_parts
from ds_train.data.pieces import row_pieces
from ds_train.data.share import share_of_rank
from ds_train.data.show_episode import describe_episodes
from ds_train.data.show_examples import example_of, rendering_facts
from ds_train.errors import DataError
from ds_train.launch.world import find_world
from ds_train.plan.batch import BatchPlan, batch_arithmetic


def describe_sample(
    prepared: PreparedData,
    tokenizer: Any,
    index: int,
    start: int = 0,
    stop: int | None = None,
    *,
    follows: bool = False,
) -> dict[str, Any]:
    """Sample `index` of the training part: where it is from, its ids, mask and texts.

    `start`, `stop`: of a piece of it; the first token of a piece is read, never learned, unless
    the piece `follows` another one in its row, whose last token predicts it.
    """
    store = prepared.train
    ids, mask = store.tokens(index)[start:stop], store.mask(index)[start:stop].copy()
    mask[:1] &= follows
    facts: dict[str, Any] = {
        "sample": int(index),
        "source": prepared.source_names[store.sources[index]],
        "source_row": int(store.ordinals[index]),
        "tokens": len(ids),
        "supervised_tokens": int(mask.sum()),
        "ids": ids.tolist(),
        "mask": mask.astype(int).tolist(),
        "segments": [
            {"text": text, "learned": learned} for text, learned in segments(tokenizer, ids, mask)
        ],
    }
    facts |= rendering_facts(store, index)
    whole = int(store.lengths[index])
    return facts if len(ids) == whole else facts | {"piece": [start, stop], "of_tokens": whole}


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


class StepView:
    """Rows of one step as facts."""

    def __init__(
        self,
        prepared: PreparedData,
        tokenizer: Any,
        plan: StepPlan,
        scores: DifficultyScores | None,
        step: int,
    ) -> None:
        self._prepared, self._tokenizer, self._scores = prepared, tokenizer, scores
        self.rows = plan.rows(step)
        first, stream = plan.first_row(step), plan.row_plan
        self._drawn: Mapping[int, Drawn | None] = {
            id(row): stream.block(stream.locate(first + number)[0]).drawn
            for number, row in enumerate(self.rows)
        }
        self._groups = np.unique(prepared.train.sources)
        self._segments = segments_of(plan)

    def rank(self, rank: int, batch: BatchPlan, packing: bool) -> list[list[list[dict[str, Any]]]]:
        """Micro-batches of a rank, each a list of rows, each a list of samples.

        Rows are whole, also where several ranks share them.
        """
        share = share_of_rank(
            self._prepared.train,
            self.rows,
            rank=rank // batch.sequence_parallel_size,
            dp_size=batch.dp_size,
            micro_batch_size=batch.micro_batch_size,
            packing=packing,
        )
        return [[self._row(row) for row in micro_batch] for micro_batch in share]

    def _row(self, row: Ints) -> list[dict[str, Any]]:
        if is_parts(row):
            return list(describe_episodes(self._prepared, self._tokenizer, row, segments))
        drawn, follows, parts = self._drawn[id(row)], False, []
        for sample, start, stop, goes_on in row_pieces(self._prepared.train, row):
            facts = describe_sample(
                self._prepared, self._tokenizer, sample, start, stop, follows=follows
            )
            parts.append(facts | self._origin(sample, drawn))
            follows = goes_on
        return parts

    def _origin(self, sample: int, drawn: Drawn | None) -> dict[str, Any]:
        """Difficulty of a sample, and the pool that it was drawn from."""
        facts: dict[str, Any] = {}
        scores = self._scores
        if drawn is not None and drawn.segment:
            assert self._segments is not None
            scores = self._segments.known[drawn.segment].scores
        if scores is not None:
            facts["difficulty"] = float(scores.values[example_of(self._prepared.train, sample)])
        if drawn is None:
            return facts
        group = 0
        if len(drawn.pools) > 1:  # one of each source of a mixture
            group = int(np.searchsorted(self._groups, self._prepared.train.sources[sample]))
            facts["stage"] = drawn.stage + 1
        return facts | {"pool": drawn.pools[group], "competence": drawn.competence}


def describe_step(
    config: RunConfig, prepared: PreparedData, tokenizer: Any, step: int
) -> dict[str, Any]:
    """Everything that optimizer step `step` (the first is 1) trains on, rank by rank."""
    batch = batch_arithmetic(config, find_world(config.cluster).world_size)
    scores = find_scores(config, prepared)
    plan = build_step_plan(config, prepared, scores, batch.global_batch_size)
    add_known_refreshes(config, plan, prepared.of_examples.train.num_samples)
    total = plan.total_steps(config.train)
    if not 1 <= step <= total:
        raise DataError(f"--step {step}: the run has steps 1 to {total:,}; name one of them.")
    index = step - 1
    view = StepView(prepared, tokenizer, plan, scores, index)
    return {
        "step": step,
        "total_steps": total,
        "batch": str(batch),
        "epoch": plan.epoch(index),
        "tokens": plan.num_tokens(index),
        "supervised_tokens": plan.num_supervised(index),
        "ranks": [view.rank(rank, batch, config.data.packing) for rank in range(batch.world_size)],
    }
