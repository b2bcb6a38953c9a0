"""Rows of candidate answers become tensors: a line for each candidate, examples kept together.

Two examples in one micro-batch, the first with three answers, of which the second is right::

    line      0  1  2  3  4
    example   0  0  0  1  1
    gold      .  x  .  x  .

Candidates of an example share its prompt, so their lines are about as long and little is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ds_train.data.batch import Batch, collate
from ds_train.data.mix import Ints
from ds_train.data.store import TokenStore
from ds_train.model.choice_losses import Candidates


def collate_candidates(
    store: TokenStore,
    rows: Sequence[Ints],
    *,
    pad_token_id: int,
    max_length: int | None = None,
    with_positions: bool = True,
    flatten: bool = False,
) -> Batch:
    """One micro-batch out of rows of candidates: a line of the tensors for each of them.

    Lines are never joined, whatever `flatten` says: the losses are told apart by line.
    """
    assert store.examples is not None
    samples = np.concatenate([np.empty(0, dtype=np.int64), *rows])
    filled = [row for row in rows if len(row)]
    batch = collate(
        store,
        [samples[i : i + 1] for i in range(max(1, len(samples)))],
        pad_token_id=pad_token_id,
        max_length=max_length,
        with_positions=with_positions,
    )
    number = np.repeat(np.arange(len(filled)), [len(row) for row in filled])
    gold = store.examples.gold[samples]
    if not filled:  # a line of padding, so that this rank computes as the others do
        number, gold = np.array([-1]), np.array([False])
    candidates = Candidates(torch.from_numpy(number), torch.from_numpy(gold), len(filled))
    return replace(batch, num_rows=len(rows), candidates=candidates)
