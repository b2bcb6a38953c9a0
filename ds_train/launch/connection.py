"""How gloo, NCCL and torch's store speak of other ranks that are gone."""

from __future__ import annotations

_CONNECTION = (
    *("connection closed", "connection reset", "connection refused", "broken pipe"),
    *("timed out", "no route to host", "network is unreachable", "remote process exited"),
)
_CONNECTION_CLASSES = ("DistBackendError", "DistNetworkError", "DistStoreError", "DistError")


def is_connection(error: str, text: str) -> bool:
    """Whether an exception (its class, its message) comes from another rank, or the network."""
    if error in _CONNECTION_CLASSES:
        return True
    return error == "RuntimeError" and any(words in text.lower() for words in _CONNECTION)
