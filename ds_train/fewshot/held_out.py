"""Held-out tasks: sources that a run is only evaluated on, and the check that none of it trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ds_train.config.run import RunConfig
from ds_train.data.sources import Source
from ds_train.data.store import TokenStore
from ds_train.errors import DataError


def held_out_tasks(config: RunConfig, sources: Sequence[Source]) -> NDArray[np.bool_]:
    """bool [num_sources] which sources are held out as a whole."""
    names = config.held_out_tasks
    return np.array([source.config.shown_name in names for source in sources], bool)


def check_disjoint(
    sources: Sequence[Source], store: TokenStore, tasks: NDArray[np.bool_], trained: NDArray
) -> None:
    """DataError where an example of a held-out task is trained on in another one.

    Args:
        tasks: [num_sources] held-out tasks.
        trained: [num_samples] samples that are trained on.
    """
    contents = store.hashes if store.examples is None else store.examples.row_hash
    faults = []
    for index in np.flatnonzero(tasks).tolist():
        own = np.unique(contents[store.sources == index])
        twins = trained & np.isin(contents, own)
        if not twins.any():
            continue
        counts = np.bincount(store.sources[twins], minlength=len(sources))
        other = int(counts.argmax())
        rows = store.ordinals[twins & (store.sources == other)]
        faults.append(
            f"fewshot.episodes.held_out: {np.isin(own, contents[twins]).sum():,} of the "
            f"{len(own):,} examples of {sources[index].name} are trained on too, most of them in "
            f"{sources[other].field} ({sources[other].name}), the first in its row "
            f"{int(rows.min()) + 1:,}; remove them from one of the two."
        )
    if faults:
        raise DataError(faults)
