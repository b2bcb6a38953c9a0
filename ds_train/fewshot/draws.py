"""Draws for one document, from a hash of the seed and of what the document says.

Nothing here keeps a state from one document to the next. What a document is given depends on its
own content, the pool and the seed: not on the number of ranks, nor on which documents come before
it, nor on whether there are any (`--limit`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")


def document_key(document: Mapping[str, Any]) -> str:
    """What a document says, as text: its columns in the order of their names."""
    return json.dumps(document, sort_keys=True, ensure_ascii=False, default=str)


class Draws:
    """Endless whole numbers that depend on (seed, purpose, key) alone."""

    def __init__(self, seed: int, purpose: str, key: str) -> None:
        # the key comes last and is hashed on its own, so that no key can imitate a purpose
        inner = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
        self._base = f"ds_train/{purpose}/{seed}/{inner}/".encode()
        self._count = 0

    def below(self, limit: int) -> int:
        """A number in [0, limit); 128 bits make the first ones likelier by less than 2^-64."""
        digest = hashlib.blake2b(self._base + str(self._count).encode(), digest_size=16).digest()
        self._count += 1
        return int.from_bytes(digest, "little") % limit

    def order(self, length: int) -> Iterator[int]:
        """range(length) in random order, one after another.

        A Fisher-Yates shuffle that remembers only the places it has touched: to take k of n costs
        O(k), and whoever takes more of the same order goes on from the same beginning.
        """
        moved: dict[int, int] = {}
        for place in range(length):
            other = place + self.below(length - place)
            yield moved.get(other, other)
            moved[other] = moved.pop(place, place)

    def shuffled(self, items: Sequence[_T]) -> list[_T]:
        """The items in random order."""
        return [items[place] for place in self.order(len(items))]
