"""`data.dev`: which samples are held out for choices, apart from those of data.validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ds_train.config.data import DataConfig
from ds_train.data.sources import Source
from ds_train.data.store import TokenStore
from ds_train.errors import DataError

Members = NDArray[np.bool_]


def dev_members(
    data: DataConfig,
    sources: Sequence[Source],
    store: TokenStore,
    taken: Members,
    hold_out: Callable[[float], Members],
) -> Members:
    """bool [num_samples]: samples of data.dev, by its sources or by a share of what is trained on.

    Args:
        taken: samples that are held out already.
        hold_out: share -> a choice among all samples, independent of that of data.validation.

    Raises DataError where a training source, or the dev set, would be left with nothing.
    """
    of_source = np.array([source.is_dev for source in sources], bool)
    members: Members = of_source[store.sources]
    fraction = None if data.dev is None else data.dev.fraction
    if not fraction:
        return members
    members |= hold_out(fraction) & ~taken
    field = f"data.dev.fraction = {fraction}"
    for index, source in enumerate(sources):
        rest = (store.sources == index) & ~taken
        if rest.any() and not source.validation and members[rest].all():
            raise DataError(
                f"{field}: nothing of {source.field} ({source.name}, {rest.sum():,} samples) is "
                "left to train on; take a smaller fraction."
            )
    if not members.any():
        raise DataError(
            f"{field}: none of the {(~taken).sum():,} samples would be held out; take a larger "
            "fraction, or give data.dev.sources."
        )
    return members
