"""One rank's part of rows that several ranks share: its positions, their labels, whose they are.

Two ranks share the row of documents a (5 6 7) and b (8 9), padded to an even width::

    rank 0   input_ids 5 6 7     labels 6 7 .     position_ids 0 1 2
    rank 1   input_ids 8 9 P     labels 9 . .     position_ids 0 1 0

Labels were shifted before, so a rank's last position knows the token after it, which its neighbour
holds. Attention sees whole rows all the same (model/shared_rows.py), and where documents begin.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ds_train.data.batch import Batch
from ds_train.model.shared_rows import WholeRows
from ds_train.ops.reference import IGNORE


def slice_batch(batch: Batch, part: int, num_parts: int) -> Batch:
    """Positions [part x w, (part + 1) x w) of every row, w = ceil(length / num_parts).

    A width that does not divide is padded with ignored positions. Samples are counted by the
    first of the ranks that share them.
    """
    if batch.position_ids is None or batch.candidates is not None:
        raise ValueError("only rows with positions and without candidates can be shared")
    length = batch.input_ids.shape[1]
    width = -(-length // num_parts)
    missing = width * num_parts - length
    own = slice(part * width, (part + 1) * width)
    labels = _widened(batch.labels, IGNORE, missing)[:, own]
    starts = _starts(batch.position_ids.numpy(), batch.labels.numpy())
    nobody = batch.sample_ids[:0]
    return replace(
        batch,
        # any token does where nothing is learned; positions that begin anew stay in their range
        input_ids=_widened(batch.input_ids, 0, missing)[:, own].contiguous(),
        labels=labels.contiguous(),
        position_ids=_widened(batch.position_ids, 0, missing)[:, own].contiguous(),
        sample_ids=nobody if part else batch.sample_ids,
        sample_tokens=nobody if part else batch.sample_tokens,
        num_rows=0 if part else batch.num_rows,
        num_supervised=int((labels != IGNORE).sum()),
        whole=WholeRows(width * num_parts, starts),
    )


def _widened(tensor: torch.Tensor, value: int, missing: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, missing), value=value)


def _starts(
    position_ids: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[tuple[int, ...], ...]:
    """Where each row's documents begin; what follows the last label needs no border.

    Causal attention never looks ahead, so that padding may be the end of the last document.
    """
    starts = []
    for positions, row in zip(position_ids, labels, strict=True):
        learned = np.flatnonzero(row != IGNORE)
        last = int(learned[-1]) if len(learned) else 0
        begins = np.flatnonzero(positions[: last + 1] == 0)
        starts.append(tuple(int(one) for one in begins) or (0,))
    return tuple(starts)
