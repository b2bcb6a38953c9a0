"""An episode as facts, for `ds-train data --step`: its query, its demonstrations, its text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ds_train.data.divide import PreparedData
from ds_train.data.mix import Ints
from ds_train.data.parts import BEGINS, part_documents

Segments = Callable[[Any, np.ndarray, np.ndarray], list[tuple[str, bool]]]


def describe_episodes(
    prepared: PreparedData, tokenizer: Any, row: Ints, segments: Segments
) -> Iterator[dict[str, Any]]:
    """Each episode of a row of parts.

    `segments(tokenizer, ids, mask)` gives the texts of stretches that are learned and not.
    """
    begins = np.flatnonzero(row[:, 3] & BEGINS)
    for parts, (ids, mask) in zip(
        np.split(row, begins[1:]), part_documents(prepared.train, row), strict=True
    ):
        *shown, query = dict.fromkeys(parts[parts[:, 0] >= 0, 0].tolist())
        texts = segments(tokenizer, ids, mask)
        yield {
            **_place(prepared, query),
            "demonstrations": [_place(prepared, sample) for sample in shown],
            "tokens": len(ids),
            "supervised_tokens": int(mask.sum()),
            "ids": ids.tolist(),
            "mask": mask.astype(int).tolist(),
            "segments": [{"text": text, "learned": learned} for text, learned in texts],
        }


def _place(prepared: PreparedData, sample: int) -> dict[str, Any]:
    store = prepared.train
    return {
        "sample": sample,
        "source": prepared.source_names[store.sources[sample]],
        "source_row": int(store.ordinals[sample]),
    }
