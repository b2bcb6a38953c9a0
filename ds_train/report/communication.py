"""The record of a counted step: its collectives, beside those that the plan expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class CommunicationRecord:
    """Collectives of one step on rank 0, each blocking, as DeepSpeed's logger counts them."""

    type: ClassVar[str] = "communication"
    step: int
    """The last step that it tells of."""
    counted_step: int
    """The one whose collectives were counted."""
    ranks: int
    bytes: int
    """That a rank put in, small messages left out; of a gather its own part."""
    sent_bytes: int
    """That a rank sends for it in a ring."""
    seconds: float
    """Of all collectives one after the other, waiting for slower ranks included."""
    share: float
    """`seconds` in the wall time of the counted step."""
    collectives: dict[str, dict[str, float]]
    """Collective -> calls, bytes, sent_bytes, seconds, the planned ones, and difference."""
    planned_bytes: int | None = None
    """What the plan says; None where it can't tell, and said why at the start."""
    planned_seconds: float | None = None
    """If nothing overlaps; None without report.cluster."""
    difference: float | None = None
    """bytes / planned_bytes - 1."""
    exposed_seconds: float | None = None
    """That of `step`, in which communication overlapped as always."""
    exposed_share: float | None = None
    """In the wall time of `step`."""
