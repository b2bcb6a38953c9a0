"""What ZeRO-3 remembers of the order of modules, dropped where the order changes."""

from __future__ import annotations

from typing import Any


def forget_trace(coordinator: Any) -> None:
    """Make ZeRO-3 record the order of modules anew, and what it may release after each.

    DeepSpeed 0.19.8 caches the latter for good, so what an evaluation (which has no backward pass)
    released would be released, and gathered again, in every training step: a model that fits into
    `stage3_max_live_parameters` was gathered four times in a step of two micro-batches instead of
    twice (ds_train/README.md).
    """
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()
    wrapped = type(coordinator)._PartitionedParameterCoordinator__params_to_release
    for cell in wrapped.__closure__ or ():  # the cache is below a decorator without __wrapped__
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()
